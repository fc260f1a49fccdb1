//! yaque: a queue in segment files for one sender and one receiver. A queue is a directory.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Mutex;

use ::yaque::recovery::recover;
use ::yaque::{Receiver, ReceiverBuilder, Sender, TryRecvError};

use crate::contender::{Card, Consumer, Contender, Durability, Producer, Supported, Unsupported};

pub struct Yaque {
    queues: Vec<Queue>,
}

struct Queue {
    sender: Mutex<Option<Sender>>,
    receiver: Mutex<Option<Receiver>>,
}

impl Queue {
    fn open(dir: &Path) -> Queue {
        // A process that was killed has left its locks, and perhaps a position in a segment that is gone.
        if dir.join("send.lock").exists() || dir.join("recv.lock").exists() {
            recover(dir).unwrap();
        }
        let sender = Sender::open(dir).unwrap();
        // The default: with every 250th message. With every one it is a few hundred times slower.
        let receiver = ReceiverBuilder::new().save_every_nth(Some(250)).open(dir).unwrap();
        Queue { sender: Mutex::new(Some(sender)), receiver: Mutex::new(Some(receiver)) }
    }
}

impl Contender for Yaque {
    fn card() -> Card {
        Card {
            name: "yaque",
            version: super::locked_version("yaque"),
            unequal: &[
                "never syncs",
                "one producer and one consumer for a queue",
                "saves its position with every 250th delete (its default): a kill brings back what was deleted since",
                "no checksums; the consumer's position is saved in place, and a kill in that moment leaves an empty \
                 file",
            ],
        }
    }

    fn open(dir: &Path, durability: Durability, queues: usize) -> Supported<Yaque> {
        if durability == Durability::Sync {
            return Err(Unsupported("never syncs"));
        }
        let queues = (0..queues).map(|queue| Queue::open(&dir.join(format!("q{queue}")))).collect();
        Ok(Yaque { queues })
    }

    fn producer(&self, queue: usize) -> Supported<impl Producer + '_> {
        Lent::new(&self.queues[queue].sender, "one sender")
    }

    fn consumer(&self, queue: usize) -> Supported<impl Consumer + '_> {
        Lent::new(&self.queues[queue].receiver, "one receiver")
    }
}

/// One half of a queue. It goes back when it is dropped, for whoever comes next.
struct Lent<'a, T> {
    home: &'a Mutex<Option<T>>,
    half: Option<T>,
}

impl<'a, T> Lent<'a, T> {
    fn new(home: &'a Mutex<Option<T>>, only: &'static str) -> Supported<Lent<'a, T>> {
        match home.lock().unwrap().take() {
            Some(half) => Ok(Lent { home, half: Some(half) }),
            None => Err(Unsupported(only)),
        }
    }
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.half.as_ref().expect("taken by the drop alone")
    }
}

impl<T> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.half.as_mut().expect("taken by the drop alone")
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        *self.home.lock().unwrap() = self.half.take();
    }
}

impl Producer for Lent<'_, Sender> {
    fn insert(&mut self, payload: &[u8]) {
        self.try_send(payload).unwrap();
    }

    fn insert_batch(&mut self, payloads: &[&[u8]]) -> Supported<()> {
        self.try_send_batch(payloads).unwrap();
        Ok(())
    }
}

impl Consumer for Lent<'_, Receiver> {
    fn pop(&mut self, look: &mut dyn FnMut(&[u8])) -> Supported<bool> {
        match self.try_recv() {
            Ok(message) => {
                look(&message);
                message.commit().unwrap();
                Ok(true)
            }
            Err(TryRecvError::QueueEmpty) => Ok(false),
            Err(TryRecvError::Io(error)) => panic!("{error}"),
        }
    }

    fn pop_batch(&mut self, max: usize, look: &mut dyn FnMut(&[u8])) -> Supported<usize> {
        match self.try_recv_batch_up_to(max) {
            Ok(messages) => {
                let count = messages.len();
                messages.iter().for_each(|message| look(message));
                messages.commit().unwrap();
                Ok(count)
            }
            Err(TryRecvError::QueueEmpty) => Ok(0),
            Err(TryRecvError::Io(error)) => panic!("{error}"),
        }
    }

    fn pop_out_of_order(
        &mut self,
        _: usize,
        _: &[usize],
        _: &mut dyn FnMut(&[u8]),
    ) -> Supported<usize> {
        Err(Unsupported("deletes from the front only"))
    }
}
