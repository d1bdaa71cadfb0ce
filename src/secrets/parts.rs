//! Secrets without Vault: put together from the configuration, files and the environment.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::SecretSource;
use super::error::{FetchError, PartError};
use super::fields::Fetched;
use super::settings::Given;
use crate::secret::Secret;

/// Octets a file with a secret may have.
const FILE_MAX: u64 = 64 * 1024;

/// Permission bits that let others than owner and group read or write.
const OTHERS: u32 = 0o007;

/// The variable in which systemd tells where the credentials of the unit are.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// A secret in parts. Everything is read again each time.
pub(super) struct Parts(pub(super) BTreeMap<String, Given>);

#[async_trait]
impl SecretSource for Parts {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let parts = self.0.clone();
        // A file may be on a network file system that hangs.
        let read = tokio::task::spawn_blocking(move || gather(&parts)).await;
        read.unwrap_or_else(|_| Ok(Fetched::default()))
    }
}

fn gather(parts: &BTreeMap<String, Given>) -> Result<Fetched, FetchError> {
    let mut fetched = Fetched::default();
    for (part, given) in parts {
        let value = match given {
            Given::Literal(text) => Ok(Secret::new(text.clone())),
            Given::File(path) => file(path),
            Given::Environment(name) => variable(name),
        };
        let value = value.map_err(|source| FetchError::Part { part: part.clone(), source })?;
        fetched.fields.insert(part.clone(), value);
    }
    Ok(fetched)
}

/// The text of a file without the newline at its end. What everyone can read is refused.
pub(super) fn file(path: &Path) -> Result<Secret, PartError> {
    // The configuration leaves this in a path when the variable is not there to replace it.
    if path.starts_with(format!("${CREDENTIALS}")) {
        return Err(PartError::Variable(CREDENTIALS.to_owned()));
    }
    let failed = |e: &std::io::Error| PartError::File { path: path.into(), kind: e.kind() };
    let bad = |why| PartError::Value { place: path.display().to_string(), why };
    let mut file = File::open(path).map_err(|e| failed(&e))?;
    let found = file.metadata().map_err(|e| failed(&e))?;
    if found.mode() & OTHERS != 0 {
        return Err(PartError::Open { path: path.into(), mode: found.mode() & 0o777 });
    }
    // The whole buffer at once: one that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(FILE_MAX).unwrap_or(0)));
    let read = file.by_ref().take(FILE_MAX).read_to_string(&mut text);
    let read = read.map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => bad("is not a text in UTF-8"),
        _ => failed(&e),
    })?;
    if u64::try_from(read).is_ok_and(|n| n == FILE_MAX) {
        return Err(bad("is too long for a secret"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

/// The value of an environment variable.
pub(super) fn variable(name: &str) -> Result<Secret, PartError> {
    std::env::var(name).map(Secret::new).map_err(|e| match e {
        std::env::VarError::NotPresent => PartError::Variable(name.to_owned()),
        std::env::VarError::NotUnicode(_) => {
            PartError::Value { place: format!("${name}"), why: "is not a text in UTF-8" }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn written(content: &[u8], mode: u32) -> Result<Secret, PartError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pw");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        file(&path)
    }

    #[test]
    fn one_line_end_is_cut_and_nothing_else() {
        for (content, value) in
            [("pw", "pw"), ("pw\n", "pw"), ("pw\r\n", "pw"), (" p w \n", " p w "), ("", "")]
        {
            assert_eq!(written(content.as_bytes(), 0o600).unwrap().expose(), value);
        }
    }

    #[test]
    fn a_path_in_a_directory_that_is_not_known_names_the_variable() {
        let error = file(Path::new("$CREDENTIALS_DIRECTORY/token")).unwrap_err().to_string();
        assert_eq!(error, "the environment variable CREDENTIALS_DIRECTORY is not set");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        assert!(written(b"pw", 0o640).is_ok());
        for mode in [0o644, 0o604, 0o602] {
            assert!(matches!(written(b"pw", mode), Err(PartError::Open { .. })), "{mode:o}");
        }
    }

    #[test]
    fn a_file_is_a_text_of_bounded_length() {
        let max = usize::try_from(FILE_MAX).unwrap();
        assert!(written(&vec![b'a'; max - 1], 0o600).is_ok());
        for bad in [vec![b'a'; max], vec![b'a'; max + 1], vec![0xff]] {
            assert!(matches!(written(&bad, 0o600), Err(PartError::Value { .. })));
        }
        assert!(matches!(file(Path::new("/nowhere/pw")), Err(PartError::File { .. })));
    }
}
