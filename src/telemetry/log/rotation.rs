use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::super::clock::Timestamp;

const MEGABYTE: u64 = 1024 * 1024;
/// Size of a file when the configuration gives none.
const SIZE_MEGABYTES: u64 = 100;

/// When a log file is replaced, and which of its predecessors stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// A file that would grow beyond this is renamed and a new one begins.
    pub bytes_max: u64,
    /// Older predecessors are deleted; 0 for none.
    pub days_max: u64,
    /// Only so many of the newest predecessors stay; 0 for all.
    pub backups_max: usize,
    /// Predecessors are compressed by gzip.
    pub compress: bool,
    /// Times in names were asked to be local ones; they are UTC.
    pub local_time: bool,
}

impl LogRotation {
    /// Reads the value of `--log-rotation-config-json`; as in etcd the case of keys does not matter and other keys are
    /// left alone.
    ///
    /// # Errors
    /// For people.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("improperly formatted log rotation config: {error}"))?;
        let Value::Object(fields) = value else { return Err("invalid log rotation config: not an object".to_owned()) };
        let mut rotation = Self {
            bytes_max: SIZE_MEGABYTES * MEGABYTE,
            days_max: 0,
            backups_max: 0,
            compress: false,
            local_time: false,
        };
        for (key, value) in fields {
            let wrong = || format!("invalid log rotation config: cannot unmarshal {value} into field {key}");
            // As in etcd, a value below 0 stands for the default.
            let number = || value.as_i64().map(|number| u64::try_from(number).unwrap_or(0)).ok_or_else(wrong);
            let boolean = || value.as_bool().ok_or_else(wrong);
            match key.to_ascii_lowercase().as_str() {
                "maxsize" => match number()? {
                    0 => {}
                    megabytes => rotation.bytes_max = megabytes.saturating_mul(MEGABYTE),
                },
                "maxage" => rotation.days_max = number()?,
                "maxbackups" => rotation.backups_max = usize::try_from(number()?).unwrap_or(usize::MAX),
                "localtime" => rotation.local_time = boolean()?,
                "compress" => rotation.compress = boolean()?,
                _ => {}
            }
        }
        Ok(rotation)
    }
}

/// A log file that is replaced when it is full. Its predecessors have the time of the change in their names:
/// `etcd.log` becomes `etcd-2006-01-02T15-04-05.000.log`, with `.gz` once it is compressed.
///
/// Predecessors are compressed and deleted by a thread of their own, so that no log line waits for it.
pub(super) struct RotatedFile {
    path: PathBuf,
    rotation: LogRotation,
    /// None after an error; the next line tries again.
    file: Option<(File, u64)>,
    /// The size beyond which the file is renamed next: more than the configured one after a rename that failed.
    limit: u64,
    tidy: SyncSender<()>,
}

impl RotatedFile {
    pub fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        // One request stands for all that come while the thread works.
        let (tidy, asked) = sync_channel(1);
        let family = Family::of(path);
        std::thread::Builder::new().name("log-rotation".to_owned()).spawn(move || {
            while asked.recv().is_ok() {
                // What fails now is tried again with the next file.
                let _ = family.tidy(rotation, Timestamp::now());
            }
        })?;
        let file = Some(append(path)?);
        let _ = tidy.try_send(());
        Ok(Self { path: path.to_owned(), rotation, file, limit: rotation.bytes_max, tidy })
    }

    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        let (file, size) = match self.file.take() {
            Some(open) => open,
            None => append(&self.path)?,
        };
        let full = size > 0 && size.saturating_add(length) > self.limit;
        let (mut file, size) = match full && self.retire(size) {
            false => (file, size),
            true => {
                let _ = self.tidy.try_send(());
                append(&self.path)?
            }
        };
        file.write_all(line)?;
        self.file = Some((file, size + length));
        Ok(())
    }

    /// Renames the file of this size. When that fails lines go on into it, and as many bytes later it is tried again.
    fn retire(&mut self, size: u64) -> bool {
        match Family::of(&self.path).retire(Timestamp::now()) {
            Ok(retired) => {
                self.limit = self.rotation.bytes_max;
                retired
            }
            Err(error) => {
                // Once, not at each try.
                if self.limit == self.rotation.bytes_max {
                    let path = self.path.display();
                    let _ =
                        writeln!(io::stderr(), "log file {path} is full but cannot be renamed, it grows on: {error}");
                }
                self.limit = size.saturating_add(self.rotation.bytes_max);
                false
            }
        }
    }
}

/// The file and its size.
fn append(path: &Path) -> io::Result<(File, u64)> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// A log file and its predecessors.
struct Family {
    path: PathBuf,
    folder: PathBuf,
    /// What names of predecessors begin and end with.
    prefix: String,
    extension: String,
}

impl Family {
    fn of(path: &Path) -> Self {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let extension = part(path.extension());
        Self {
            path: path.to_owned(),
            folder: folder.to_owned(),
            prefix: format!("{}-", part(path.file_stem())),
            extension: if extension.is_empty() { extension } else { format!(".{extension}") },
        }
    }

    /// Renames the file; not if that would replace a predecessor of the same millisecond.
    fn retire(&self, now: Timestamp) -> io::Result<bool> {
        let target = self.folder.join(format!("{}{}{}", self.prefix, now.in_file_names(), self.extension));
        if target.exists() {
            return Ok(false);
        }
        match fs::rename(&self.path, target) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            renamed => renamed.map(|()| true),
        }
    }

    /// Predecessors with the times in their names, the newest first.
    fn predecessors(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let plain = name.strip_suffix(".gz").unwrap_or(&name);
            let time = plain.strip_prefix(&self.prefix).and_then(|rest| rest.strip_suffix(&self.extension));
            if let Some(time) = time.filter(|time| is_time(time)) {
                found.push((time.to_owned(), path));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Deletes and compresses predecessors.
    fn tidy(&self, rotation: LogRotation, now: Timestamp) -> io::Result<()> {
        let oldest = (rotation.days_max > 0).then(|| now.days_before(rotation.days_max).in_file_names());
        let mut times: Vec<String> = Vec::new();
        for (time, path) in self.predecessors()? {
            // One that is half compressed has two files.
            if times.last() != Some(&time) {
                times.push(time.clone());
            }
            let surplus = rotation.backups_max > 0 && times.len() > rotation.backups_max;
            if surplus || oldest.as_ref().is_some_and(|oldest| time < *oldest) {
                fs::remove_file(&path)?;
            } else if rotation.compress && path.extension().is_none_or(|extension| extension != "gz") {
                compress(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether a part of a name has the form of [`Timestamp::in_file_names`].
fn is_time(text: &str) -> bool {
    let form = b"0000-00-00T00-00-00.000";
    text.len() == form.len()
        && text.bytes().zip(form).all(|(c, form)| if *form == b'0' { c.is_ascii_digit() } else { c == *form })
}

fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let packed = PathBuf::from(name);
    let written = (|| {
        let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&packed)?;
        let mut encoder = GzEncoder::new(file, Compression::default());
        io::copy(&mut File::open(path)?, &mut encoder)?;
        encoder.finish()?.sync_all()
    })();
    match written {
        Ok(()) => fs::remove_file(path),
        Err(error) => {
            let _ = fs::remove_file(&packed);
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn rotation(bytes_max: u64, backups_max: usize) -> LogRotation {
        LogRotation { bytes_max, days_max: 0, backups_max, compress: false, local_time: false }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_configuration_is_etcds() {
        let text = r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;
        assert_eq!(LogRotation::from_json(text), Ok(rotation(100 << 20, 0)));
        let text = r#"{"MaxSize": 1, "maxage": 2, "maxbackups": 3, "compress": true, "other": []}"#;
        let read = LogRotation { bytes_max: 1 << 20, days_max: 2, backups_max: 3, compress: true, local_time: false };
        assert_eq!(LogRotation::from_json(text), Ok(read));
        assert_eq!(LogRotation::from_json(r#"{"maxsize": 0, "maxage": -1}"#), Ok(rotation(100 << 20, 0)));
        for (text, error) in [
            ("{", "improperly formatted log rotation config: "),
            ("[]", "invalid log rotation config: not an object"),
            (r#"{"maxsize": "1"}"#, "invalid log rotation config: cannot unmarshal"),
            (r#"{"compress": 1}"#, "invalid log rotation config: cannot unmarshal 1 into field compress"),
        ] {
            let seen = LogRotation::from_json(text).unwrap_err();
            assert!(seen.starts_with(error), "{seen}");
        }
    }

    #[test]
    fn a_full_file_is_renamed_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/etcd.log");
        let mut file = RotatedFile::open(&path, rotation(10, 0)).unwrap();
        let lines: Vec<String> = (0..200).map(|number| format!("{number:03} line\n")).collect();
        for line in &lines {
            file.write(line.as_bytes()).unwrap();
        }
        let older = Family::of(&path).predecessors().unwrap();
        assert!(!older.is_empty());
        let files = older.into_iter().map(|(_, path)| path).chain([path.clone()]);
        let mut found: Vec<String> = files
            .flat_map(|path| {
                let text = fs::read_to_string(path).unwrap();
                text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        assert_eq!(found, lines);
        // A process that starts again goes on with the file.
        drop(file);
        let mut file = RotatedFile::open(&path, rotation(1 << 20, 0)).unwrap();
        file.write(b"more\n").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("line\nmore\n"));
    }

    #[test]
    fn lines_go_on_into_a_file_that_cannot_be_renamed() {
        // Cause: when the rename failed, this line and every later one was lost.
        let folder = tempfile::tempdir().unwrap();
        let (logs, moved) = (folder.path().join("logs"), folder.path().join("moved"));
        let path = logs.join("etcd.log");
        let mut file = RotatedFile::open(&path, rotation(20, 0)).unwrap();
        let mut write = |lines: &[&str]| {
            for line in lines {
                file.write(line.as_bytes()).unwrap();
            }
        };
        write(&["1 line\n", "2 line\n"]);
        // A file in place of the folder fails the rename for every user, and the open file is still there.
        fs::rename(&logs, &moved).unwrap();
        fs::write(&logs, "").unwrap();
        write(&["3 line\n"]);
        fs::remove_file(&logs).unwrap();
        fs::rename(&moved, &logs).unwrap();
        // It is not tried again with each line.
        write(&["4 line\n"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1 line\n2 line\n3 line\n4 line\n");
        write(&["5 line\n", "6 line\n"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "5 line\n6 line\n");
        let older = Family::of(&path).predecessors().unwrap();
        assert_eq!(older.len(), 1);
        assert_eq!(fs::read_to_string(&older[0].1).unwrap(), "1 line\n2 line\n3 line\n4 line\n");
    }

    #[test]
    fn old_files_are_deleted_and_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.log");
        let family = Family::of(&path);
        let file = |name: &str| fs::write(folder.path().join(name), name).unwrap();
        for name in
            ["etcd-2001-01-01T00-00-00.000.log", "etcd-2002-01-01T00-00-00.000.log", "etcd-2003-01-01T00-00-00.000.log"]
        {
            file(name);
        }
        file("etcd-server.log");
        file("etcd.log");
        let now = Timestamp::now();
        family.tidy(LogRotation { compress: true, ..rotation(1, 2) }, now).unwrap();
        let kept = [
            "etcd-2002-01-01T00-00-00.000.log.gz",
            "etcd-2003-01-01T00-00-00.000.log.gz",
            "etcd-server.log",
            "etcd.log",
        ];
        assert_eq!(names(folder.path()), kept);
        let packed = File::open(folder.path().join(kept[0])).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "etcd-2002-01-01T00-00-00.000.log");
        family.tidy(LogRotation { days_max: 30, ..rotation(1, 0) }, now).unwrap();
        assert_eq!(names(folder.path()), ["etcd-server.log", "etcd.log"]);
    }
}
