//! Files that appear whole.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A result file that is opened before the measuring and appears whole after it, or not at all.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<std::fs::File>,
}

impl Destination {
    /// Makes sure that `path` can be written, without touching what is there.
    ///
    /// # Errors
    /// What creating a file beside it gives.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if path.is_dir() {
            return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a directory"));
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or(path.as_os_str()));
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = Some(std::fs::File::create(&temporary)?);
        Ok(Self { path: path.to_owned(), temporary, file })
    }

    /// Writes a part, in the order of the calls.
    ///
    /// # Errors
    /// What writing gives.
    pub fn append(&mut self, part: &[u8]) -> std::io::Result<()> {
        self.file.as_mut().expect("it is open until it is finished").write_all(part)
    }

    /// Writes `rest`, after what was appended, and puts the file in its place.
    ///
    /// # Errors
    /// What writing or renaming gives; nothing is left behind then.
    pub fn finish(mut self, rest: impl AsRef<[u8]>) -> std::io::Result<()> {
        let mut file = self.file.take().expect("finish is called once");
        file.write_all(rest.as_ref())?;
        file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // After `finish` it is gone already.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        std::fs::write(&path, "old").unwrap();
        let entries = || std::fs::read_dir(folder.path()).unwrap().count();
        drop(Destination::open(&path).unwrap());
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), entries()), ("old", 1));
        let mut destination = Destination::open(&path).unwrap();
        destination.append(b"ne").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), entries()), ("old", 2));
        destination.finish("w").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), entries()), ("new", 1));
        assert!(Destination::open(folder.path()).is_err());
        assert!(Destination::open(&folder.path().join("missing/result.json")).is_err());
    }
}
