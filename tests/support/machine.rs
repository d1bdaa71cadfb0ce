//! A machine under the spool: what its files and directories hold, and what of that is on the disk.
//!
//! Nothing is on the disk before it is synced: a file's octets by the file's sync, its *name* by
//! the sync of the directory. The power can go at every sync, and then each unsynced write is
//! there, is not there, or is torn between two sectors, in any order; so are names.
#![allow(dead_code, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use postgate::mail::ReadAt;
use postgate::spool::{File, Is, Listed, Open, Storage};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// The machine; its storage is given to the spool.
pub struct Machine {
    state: Mutex<State>,
    watch: Mutex<Option<Watch>>,
}

/// Told of every sync before it takes effect.
type Watch = Box<dyn FnMut(&Image) + Send>;

struct State {
    image: Image,
    calls: u64,
    /// Changing calls that fail, and with what.
    fail: Option<(u64, u64, i32)>,
    random: fastrand::Rng,
}

/// All files and directories, in memory and on the disk. Cheap to clone.
#[derive(Clone, Default)]
pub struct Image {
    files: BTreeMap<u64, Inode>,
    dirs: BTreeMap<PathBuf, Dir>,
    next: u64,
}

#[derive(Clone, Default)]
struct Inode {
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    unsynced: Vec<Change>,
    /// A sync failed: what was lost then is not in `unsynced` any more, and never gets there.
    lossy: bool,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, octets: Arc<Vec<u8>> },
    Length(usize),
}

#[derive(Clone, Default)]
struct Dir {
    live: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    unsynced: Vec<Naming>,
}

#[derive(Clone, Copy)]
enum Entry {
    File(u64),
    Directory,
}

/// A change to a directory; each is there as a whole or not.
#[derive(Clone)]
enum Naming {
    Add(String, Entry),
    Rename(String, String, Entry),
    Remove(String),
}

/// How much of what was not synced survives.
#[derive(Clone, Copy)]
enum Fate {
    Nothing,
    Everything,
    /// In the order it was written, up to a sector of some write.
    Until,
    /// Any sector of any write, whatever became of the others.
    Any,
}

impl Machine {
    /// A machine with an empty disk.
    pub fn new(seed: u64) -> Arc<Self> {
        let mut image = Image::default();
        image.dirs.insert(PathBuf::new(), Dir::default());
        Self::with(image, seed)
    }

    /// A machine that starts with what another one's disk held.
    pub fn with(image: Image, seed: u64) -> Arc<Self> {
        let random = fastrand::Rng::with_seed(seed);
        let state = Mutex::new(State { image, calls: 0, fail: None, random });
        Arc::new(Self { state, watch: Mutex::default() })
    }

    /// `watch` sees the machine at every sync from now on, as it is when the sync begins.
    pub fn watch(&self, watch: impl FnMut(&Image) + Send + 'static) {
        *self.watch.lock().unwrap() = Some(Box::new(watch));
    }

    /// Nobody watches any more.
    pub fn unwatch(&self) {
        *self.watch.lock().unwrap() = None;
    }

    /// The changing calls `from..to`, counted from now, fail with this error number.
    pub fn fail(&self, from: u64, to: u64, error: i32) {
        let mut state = self.state();
        let now = state.calls;
        state.fail = Some((now.saturating_add(from), now.saturating_add(to), error));
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.state().fail = None;
    }

    /// Changing calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// The machine as it is.
    pub fn image(&self) -> Image {
        self.state().image.clone()
    }

    /// Puts a file there.
    pub fn put(self: &Arc<Self>, path: &Path, octets: &[u8]) {
        let file = MachineStorage(Arc::clone(self)).open(path, Open::Create).unwrap();
        file.write_at(octets, 0).unwrap();
        file.sync().unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn changing(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls += 1;
        let n = state.calls - 1;
        match state.fail {
            Some((from, to, error)) if (from..to).contains(&n) => {
                Err(io::Error::from_raw_os_error(error))
            }
            _ => Ok(state),
        }
    }

    fn see(&self, state: &State) {
        if let Some(watch) = &mut *self.watch.lock().unwrap() {
            watch(&state.image);
        }
    }
}

impl Image {
    /// What is on the disk when the power goes now; `seed` chooses what of the unsynced survives.
    pub fn cut(&self, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let fates = [Fate::Nothing, Fate::Everything, Fate::Until, Fate::Any];
        let fate = fates[usize::try_from(seed % 4).unwrap()];
        let mut after = Self { next: self.next, ..Self::default() };
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let Some(dir) = self.dirs.get(&path) else { continue };
            let entries = dir.survivors(fate, &mut random);
            for (name, entry) in &entries {
                match entry {
                    Entry::Directory => waiting.push(path.join(name)),
                    Entry::File(n) => {
                        let octets = Arc::new(self.files[n].survivors(fate, &mut random));
                        let file = Inode {
                            live: Arc::clone(&octets),
                            durable: octets,
                            ..Inode::default()
                        };
                        after.files.entry(*n).or_insert(file);
                    }
                }
            }
            let dir = Dir { live: entries.clone(), durable: entries, unsynced: Vec::new() };
            after.dirs.insert(path, dir);
        }
        after
    }

    /// The files and what they hold.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, &[u8])> {
        self.dirs.iter().flat_map(move |(path, dir)| {
            dir.live.iter().filter_map(move |(name, entry)| match entry {
                Entry::File(n) => Some((path.join(name), self.files[n].live.as_slice())),
                Entry::Directory => None,
            })
        })
    }

    /// Changes what a file holds, as a failing disk does: behind everyone's back.
    pub fn spoil(&mut self, path: &Path, spoil: impl FnOnce(&mut Vec<u8>)) {
        let (dir, name) = split(path);
        let Some(Entry::File(n)) = self.dirs[&dir].live.get(&name).copied() else {
            panic!("no file {}", path.display());
        };
        let inode = self.files.get_mut(&n).unwrap();
        spoil(Arc::make_mut(&mut inode.live));
        inode.durable = Arc::clone(&inode.live);
    }

    /// The same without the files of one directory.
    pub fn without(mut self, dir: &str) -> Self {
        if let Some(dir) = self.dirs.get_mut(Path::new(dir)) {
            dir.live.clear();
            dir.durable.clear();
        }
        self
    }

    /// Takes a file away.
    pub fn lose(&mut self, path: &Path) {
        let (dir, name) = split(path);
        let dir = self.dirs.get_mut(&dir).unwrap();
        dir.live.remove(&name);
        dir.durable.remove(&name);
    }

    fn change(&mut self, inode: u64, change: Change) {
        let inode = self.files.get_mut(&inode).unwrap();
        let live = Arc::make_mut(&mut inode.live);
        match &change {
            Change::Write { at, octets } => {
                if live.len() < at + octets.len() {
                    live.resize(at + octets.len(), 0);
                }
                live[*at..at + octets.len()].copy_from_slice(octets);
            }
            Change::Length(len) if live.len() < *len => live.resize(*len, 0),
            Change::Length(_) => {}
        }
        inode.unsynced.push(change);
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Dir> {
        self.dirs.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Inode {
    fn survivors(&self, fate: Fate, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut octets = self.durable.to_vec();
        let mut changes: Vec<&Change> = self.unsynced.iter().collect();
        let until = match fate {
            Fate::Nothing => return octets,
            Fate::Everything => changes.len(),
            Fate::Until => random.usize(0..=changes.len()),
            Fate::Any => {
                random.shuffle(&mut changes);
                changes.len()
            }
        };
        for (i, change) in changes.iter().enumerate() {
            match change {
                _ if i > until => break,
                Change::Length(len) => {
                    if octets.len() < *len && (!matches!(fate, Fate::Any) || random.bool()) {
                        octets.resize(*len, 0);
                    }
                }
                Change::Write { at, octets: written } => {
                    let sectors = (at % SECTOR + written.len()).div_ceil(SECTOR);
                    let torn = random.usize(0..=sectors);
                    for sector in 0..sectors {
                        let there = match fate {
                            Fate::Any => random.bool(),
                            Fate::Until if i == until => sector < torn,
                            _ => true,
                        };
                        if there {
                            put_sector(&mut octets, *at, written, sector);
                        }
                    }
                }
            }
        }
        octets
    }
}

/// One sector's part of a write.
fn put_sector(octets: &mut Vec<u8>, at: usize, written: &[u8], sector: usize) {
    let start = (at / SECTOR + sector) * SECTOR;
    let (from, to) = (start.max(at), (start + SECTOR).min(at + written.len()));
    if octets.len() < to {
        octets.resize(to, 0);
    }
    octets[from..to].copy_from_slice(&written[from - at..to - at]);
}

impl Dir {
    fn survivors(&self, fate: Fate, random: &mut fastrand::Rng) -> BTreeMap<String, Entry> {
        let mut names = self.durable.clone();
        let until = match fate {
            Fate::Nothing => 0,
            Fate::Until => random.usize(0..=self.unsynced.len()),
            Fate::Everything | Fate::Any => self.unsynced.len(),
        };
        for naming in self.unsynced.iter().take(until) {
            if matches!(fate, Fate::Any) && random.bool() {
                continue;
            }
            naming.apply(&mut names);
        }
        names
    }

    fn change(&mut self, naming: Naming) {
        naming.apply(&mut self.live);
        self.unsynced.push(naming);
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, Entry>) {
        match self {
            Self::Add(name, entry) => {
                names.insert(name.clone(), *entry);
            }
            Self::Rename(from, to, entry) => {
                names.remove(from);
                names.insert(to.clone(), *entry);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

fn split(path: &Path) -> (PathBuf, String) {
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    (path.parent().unwrap().to_owned(), name)
}

/// The storage of a machine.
pub struct MachineStorage(pub Arc<Machine>);

impl Storage for MachineStorage {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = if how == Open::Create { self.0.changing()? } else { self.0.state() };
        let (dir, name) = split(path);
        let image = &mut state.image;
        let inode = match (image.dir(&dir)?.live.get(&name), how) {
            (Some(Entry::Directory), _) => return Err(io::ErrorKind::IsADirectory.into()),
            (Some(_), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Entry::File(inode)), _) => *inode,
            (None, Open::Create) => {
                let n = image.next;
                image.next += 1;
                image.files.insert(n, Inode::default());
                image.dir(&dir)?.change(Naming::Add(name, Entry::File(n)));
                n
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        drop(state);
        Ok(Arc::new(MachineFile { machine: Arc::clone(&self.0), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.changing()?;
        let ((dir, from), (other, to)) = (split(from), split(to));
        assert_eq!(dir, other, "a rename from one directory to another is not modelled");
        let dir = state.image.dir(&dir)?;
        let entry = dir.live.get(&from).copied().ok_or(io::ErrorKind::NotFound)?;
        dir.change(Naming::Rename(from, to, entry));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.changing()?;
        let (dir, name) = split(path);
        let dir = state.image.dir(&dir)?;
        if !dir.live.contains_key(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        dir.change(Naming::Remove(name));
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.changing()?;
        let (dir, name) = split(path);
        let parent = state.image.dir(&dir)?;
        match parent.live.get(&name) {
            Some(Entry::Directory) => return Ok(()),
            Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => parent.change(Naming::Add(name, Entry::Directory)),
        }
        state.image.dirs.insert(path.to_owned(), Dir::default());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Listed>> {
        let mut state = self.0.state();
        let is = |e: &Entry| if matches!(e, Entry::File(_)) { Is::File } else { Is::Directory };
        let names = state.image.dir(dir)?.live.iter();
        Ok(names.map(|(name, e)| Listed { name: name.clone(), is: is(e) }).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.changing()?;
        self.0.see(&state);
        let dir = state.image.dir(dir)?;
        dir.durable = dir.live.clone();
        dir.unsynced.clear();
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        Ok(u64::MAX / 2)
    }
}

struct MachineFile {
    machine: Arc<Machine>,
    inode: u64,
}

impl ReadAt for MachineFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let state = self.machine.state();
        let live = &state.image.files[&self.inode].live;
        let at = usize::try_from(offset).unwrap();
        let found = live.get(at..at + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }
}

impl File for MachineFile {
    /// Some of what can be read is said to be on the disk only, always the same.
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset / 512 % 2 == 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.read_exact_at(buf, offset)
    }

    fn write_at(&self, octets: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        let change = |octets: &[u8]| Change::Write { at, octets: Arc::new(octets.to_vec()) };
        match self.machine.changing() {
            Ok(mut state) => {
                state.image.change(self.inode, change(octets));
                Ok(())
            }
            Err(e) => {
                // A write that fails has written some of it.
                let mut state = self.machine.state();
                let some = state.random.usize(0..=octets.len());
                state.image.change(self.inode, change(&octets[..some]));
                Err(e)
            }
        }
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.machine.changing()?.image.change(self.inode, Change::Length(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.machine.changing().inspect_err(|_| self.lose())?;
        self.machine.see(&state);
        let State { image, random, .. } = &mut *state;
        let inode = image.files.get_mut(&self.inode).unwrap();
        inode.durable = if inode.lossy {
            Arc::new(inode.survivors(Fate::Everything, random))
        } else {
            Arc::clone(&inode.live)
        };
        inode.unsynced.clear();
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.machine.state().image.files[&self.inode].live.len() as u64)
    }
}

impl MachineFile {
    /// After a sync that failed, memory calls its pages clean, whatever of them reached the disk:
    /// a later sync doesn't write them again.
    fn lose(&self) {
        let mut state = self.machine.state();
        let State { image, random, .. } = &mut *state;
        let inode = image.files.get_mut(&self.inode).unwrap();
        inode.durable = Arc::new(inode.survivors(Fate::Any, random));
        inode.unsynced.clear();
        inode.lossy = true;
    }
}
