//! The rounds: a disk, a power cut or two, a look at what is left.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::guest::Task;
use crate::history::{Counts, History};
use crate::load::Random;
use crate::machine::{Machine, When};
use crate::mount::{FileSystem, Mounted};
use crate::observe;
use crate::port;
use crate::record::{Kind, Record};

/// Enough for XFS; all disks of a machine are as long.
const DISK_BYTES: u64 = 300 << 20;

/// Of so many rounds one cuts off the recovery too.
const RECOVERY_ONE_IN: u64 = 3;

#[derive(Debug, Default)]
pub struct Figures {
    pub cuts: u64,
    /// Those while a store was recovered or after that.
    pub in_recovery: u64,
    /// Before the store was open for the first time.
    pub before_the_open: u64,
    pub messages: u64,
    pub redelivered: u64,
    /// Disks with a segment that compaction had written.
    pub rewritten: u64,
    /// Inserts that had returned after a recovery.
    pub inserted_afterwards: u64,
    pub acknowledged: Counts,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { inserts, deliveries, deletes, dead_letters, opens } = self.acknowledged;
        write!(
            f,
            "{} power cuts ({} in or after a recovery, {} before the store was open): {inserts} \
             acknowledged inserts and {} after a recovery, {deliveries} deliveries, {deletes} deletes, \
             {dead_letters} dead letters, {opens} opens; {} messages checked, {} of them delivered again; {} disks with \
             rewritten segments",
            self.cuts,
            self.in_recovery,
            self.before_the_open,
            self.inserted_afterwards,
            self.messages,
            self.redelivered,
            self.rewritten,
        )
    }
}

/// After up to `most` notes, and a moment more.
fn when(random: &mut Random, most: u64) -> When {
    let bytes = random.below(most) as usize * port::RECORD_BYTES;
    When { bytes, then: Duration::from_micros(random.below(20_000)) }
}

pub struct Scene {
    dir: TempDir,
    disk: PathBuf,
    machine: Machine,
}

impl Scene {
    pub fn prepare() -> Result<Scene, String> {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory } else { &std::env::temp_dir() };
        let prefix = "millpond-power-cut-";
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(base).unwrap();
        let disk = dir.path().join("disk");
        FileSystem::Ext4.make(&disk, DISK_BYTES)?;
        // Whether this machine lets anybody mount.
        Mounted::mount(&disk, FileSystem::Ext4, &dir.path().join("mounted"))?;
        let machine = Machine::prepare(dir.path(), &disk)?;
        Ok(Scene { dir, disk, machine })
    }

    /// One round on a new disk.
    pub fn cut(&self, seed: u64, figures: &mut Figures) -> Result<(), String> {
        let mut random = Random::new(seed);
        let file_system = if random.one_in(3) { FileSystem::Xfs } else { FileSystem::Ext4 };
        file_system.make(&self.disk, DISK_BYTES)?;
        let mut orders = |task: Task| {
            // Each start is another boot.
            let boot = format!("{:016x}-{:016x}", random.next(), random.next());
            format!("{} {boot} {} {seed}", file_system.name(), task.name())
        };
        let (work, recover) = (orders(Task::Work), orders(Task::Recover));
        let notes = self.machine.cut(&self.disk, &work, when(&mut random, 1200))?;
        let notes = port::decode(&notes);
        let history = History::new(&notes)?;
        figures.cuts += 1;
        let opened = notes.iter().any(|record| record.kind == Kind::Opened);
        figures.before_the_open += u64::from(!opened);
        figures.acknowledged.add(&history.counts);
        let mut afterwards = Vec::new();
        if random.one_in(RECOVERY_ONE_IN) {
            let said = self.machine.cut(&self.disk, &recover, when(&mut random, 60))?;
            afterwards = port::decode(&said);
            figures.cuts += 1;
            figures.in_recovery += 1;
        }
        self.check(file_system, &history, &afterwards, figures)
    }

    fn check(
        &self,
        file_system: FileSystem,
        history: &History,
        afterwards: &[Record],
        figures: &mut Figures,
    ) -> Result<(), String> {
        let mounted = Mounted::mount(&self.disk, file_system, &self.dir.path().join("mounted"))?;
        let observed = observe::observe(&mounted.dir().join("store"))?;
        history.check(&observed, 0)?;
        let of_kind = |kind: Kind| afterwards.iter().filter(move |record| record.kind == kind);
        let told: Vec<u64> = of_kind(Kind::Inserted).map(|record| record.id).collect();
        observed.check_afterwards(&told, of_kind(Kind::Inserting).count() as u64)?;
        figures.inserted_afterwards += told.len() as u64;
        figures.messages += observed.messages() as u64;
        figures.redelivered += observed.redelivered;
        figures.rewritten += u64::from(observed.rewritten);
        Ok(())
    }
}
