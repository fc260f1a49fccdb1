//! What a store does of its own accord and somebody should know of, for the log of the program: the feature `tracing`.

/// A queue has paused itself.
pub(crate) fn paused_itself(queue: &str, failures: u32) {
    #[cfg(feature = "tracing")]
    tracing::warn!(queue, failures, "a queue has paused itself after so many failures in a row");
    #[cfg(not(feature = "tracing"))]
    let _ = (queue, failures);
}

#[cfg(test)]
#[cfg(feature = "tracing")]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    /// Keeps what is told, in words.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl Visit for Heard {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push(format!("{field}={value:?}"));
        }
    }

    impl Subscriber for Heard {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_queue_that_pauses_itself_is_a_warning_in_the_log() {
        let heard = Heard::default();
        tracing::subscriber::with_default(heard.clone(), || paused_itself("orders", 20));
        let heard = heard.0.lock().unwrap();
        assert!(heard.contains(&"queue=\"orders\"".to_owned()), "{heard:?}");
        assert!(heard.contains(&"failures=20".to_owned()), "{heard:?}");
    }
}
