//! A spool as it is for nearly all of its life: mail has gone through, so its files have blocks that
//! were written before. The first write to a block that is only allocated costs the file system
//! a change of its own at each sync; a new spool is like that for its first 200 MiB and never again.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use tempfile::TempDir;

use super::{Onward, System, free_address, mode, postgate};
use crate::args::Args;
use crate::client::Way;
use crate::load::{self, Load};
use crate::sink::Sink;

/// Octets that go through.
const MAIL: usize = 256 << 20;
const SIZE: usize = 100 << 10;

/// Makes one: what Postgate leaves when all has been delivered.
pub fn spool(args: &Args) -> Result<TempDir, String> {
    let smarthost = free_address();
    let sink = Sink::listen(smarthost);
    let mut relay = System::Postgate.start(args, Onward::To(smarthost));
    let loaded = load::run(&Load {
        to: relay.address,
        domain: "sink.test",
        sessions: 10,
        size: SIZE,
        way: Way::Plain,
        messages: (MAIL / SIZE) as u64,
        time: args.limit(),
        pace: None,
    })?;
    let arrived = sink.wait(loaded.acknowledged, args.limit()).unique();
    if arrived != (MAIL / SIZE) as u64 {
        return Err(format!("{arrived} messages went through"));
    }
    relay.down();
    let aged = tempfile::Builder::new().prefix("aged").tempdir_in(&args.dir).unwrap();
    copy(&postgate::spool(relay.home()), aged.path());
    Ok(aged)
}

/// Copies what is in a folder into another that is there. All blocks of the copies were written.
pub fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            mode(&to, 0o700);
            copy(&entry.path(), &to);
        } else {
            copy_blocks(&mut File::open(entry.path()).unwrap(), &to);
        }
    }
    File::open(to).unwrap().sync_all().unwrap();
}

/// Block by block, as a relay writes. What is copied in one piece is in the page cache in large
/// ones, and for a change of a block the system counts the whole piece as sent to the disk.
fn copy_blocks(from: &mut File, to: &Path) {
    let mut to = File::create(to).unwrap();
    to.set_permissions(from.metadata().unwrap().permissions()).unwrap();
    let mut block = [0; 4096];
    loop {
        match from.read(&mut block).unwrap() {
            0 => break,
            n => to.write_all(&block[..n]).unwrap(),
        }
    }
    to.sync_all().unwrap();
}
