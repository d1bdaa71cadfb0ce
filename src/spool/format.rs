//! The file that says what wrote the spool (`docs/spool.md`, "Directory").

use std::io;
use std::path::Path;

use super::place::OpenError;
use super::segment;
use super::storage::{Open, Storage};

const FORMAT: &str = "FORMAT";
const TEMPORARY: &str = "FORMAT.tmp";
const VERSION: &str = "postgate-spool 1";

/// Reads the salt of the spool, or makes it a spool with the salt `drawn`. A spool of another
/// version is left as it is.
pub(super) fn salt(
    storage: &dyn Storage,
    root: &Path,
    drawn: impl FnOnce() -> u32,
) -> Result<u32, OpenError> {
    let path = root.join(FORMAT);
    let io = |action| {
        let path = path.clone();
        move |e| OpenError::io(action, &path, e)
    };
    let format = |found: &str| OpenError::Format { path: path.clone(), found: found.into() };
    if let Some(salt) = read(storage, &path)? {
        return Ok(salt);
    }
    if has_segments(storage).map_err(io("look beside"))? {
        return Err(format("the file is missing, and there are segments"));
    }
    let salt = drawn();
    create(storage, salt).map_err(io("create"))?;
    Ok(salt)
}

/// Reads the salt of a spool that is there already.
pub(super) fn salt_of(storage: &dyn Storage, root: &Path) -> Result<u32, OpenError> {
    let path = root.join(FORMAT);
    let found = "the file is missing; this is no spool".into();
    read(storage, &path)?.ok_or(OpenError::Format { path, found })
}

fn read(storage: &dyn Storage, path: &Path) -> Result<Option<u32>, OpenError> {
    let io = |action| move |e| OpenError::io(action, path, e);
    let file = match storage.open(Path::new(FORMAT), Open::Read) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io("open"))?,
    };
    let len = file.size().map_err(io("read"))?;
    let mut text = vec![0; usize::try_from(len).unwrap_or(0).min(4096)];
    file.read_exact_at(&mut text, 0).map_err(io("read"))?;
    let salt = parse(&String::from_utf8_lossy(&text));
    salt.map(Some).map_err(|found| OpenError::Format { path: path.into(), found })
}

fn parse(text: &str) -> Result<u32, String> {
    let mut lines = text.lines();
    let version = lines.next().unwrap_or_default();
    if version != VERSION {
        let shown: String = version.chars().take(40).collect();
        return Err(format!("{shown:?} is not {VERSION:?}, the only format this version reads"));
    }
    let salt = lines.next().and_then(|l| l.strip_prefix("salt "));
    salt.and_then(|s| u32::from_str_radix(s, 16).ok()).ok_or_else(|| "no salt in it".into())
}

fn has_segments(storage: &dyn Storage) -> io::Result<bool> {
    match segment::names(storage) {
        Ok(names) => Ok(!names.segments.is_empty()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn create(storage: &dyn Storage, salt: u32) -> io::Result<()> {
    let temporary = Path::new(TEMPORARY);
    match storage.remove(temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = storage.open(temporary, Open::Create)?;
    file.write_at(format!("{VERSION}\nsalt {salt:08x}\n").as_bytes(), 0)?;
    file.sync()?;
    storage.rename(temporary, Path::new(FORMAT))?;
    storage.sync_dir(Path::new(""))
}
