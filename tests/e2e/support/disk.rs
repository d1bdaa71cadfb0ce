//! File systems of a test's own. They are mounted in the namespace of a process that does nothing
//! else, and are gone with it, however the test ends; others reach them through `/proc`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::Part;
use super::{PATIENCE, eventually};

/// A mounted file system, empty, for its owner only.
pub struct Disk {
    holder: Part,
    dir: TempDir,
}

impl Disk {
    /// One in memory, of so many MiB.
    pub fn tmpfs(mib: u32) -> Self {
        Self::mount(&format!("mount -t tmpfs -o size={mib}m,mode=700 disk \"$1/mnt\""))
    }

    /// One layer above another, as in a container.
    pub fn overlay() -> Self {
        Self::mount(
            "mount -t tmpfs disk \"$1/layers\" && cd \"$1/layers\" && mkdir -m 700 low up work && \
             mount -t overlay -o lowerdir=low,upperdir=up,workdir=work disk \"$1/mnt\"",
        )
    }

    fn mount(script: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("disk").tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::create_dir(dir.path().join("layers")).unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{script} && echo mounted && exec sleep infinity"));
        command.arg("sh").arg(dir.path());
        let mut holder = Part::spawn(&command, "KILL", &log);
        eventually(PATIENCE, "a mounted file system", || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            assert!(
                holder.is_running(),
                "this test mounts a file system and may not (tests/run gives it a namespace in \
                 which it may): {said}"
            );
            said.contains("mounted").then_some(())
        });
        Self { holder, dir }
    }

    /// Where it is to be seen.
    pub fn path(&self) -> PathBuf {
        let path = self.dir.path().strip_prefix("/").unwrap();
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(path).join("mnt")
    }

    /// Takes all room but about `left` octets.
    pub fn fill(&self, left: u64) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        let mut piece = vec![b'f'; 1 << 20];
        while !piece.is_empty() {
            match file.write(&piece) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => piece.truncate(piece.len() / 4),
                Err(e) => panic!("{e}"),
            }
        }
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(left)).unwrap();
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}
