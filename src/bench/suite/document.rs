//! A document that has the table between two marks.

use std::path::{Path, PathBuf};

use super::programs::at;

const BEGIN: &str = "<!-- bench suite -->\n";
const END: &str = "<!-- end of bench suite -->";

/// A file whose text between the marks is replaced.
#[derive(Debug)]
pub(super) struct Document {
    path: PathBuf,
}

impl Document {
    /// # Errors
    /// The file cannot be read, or does not have both marks.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let document = Self { path: path.into() };
        document.around().map(|_| document)
    }

    /// Replaces what is between the marks, and leaves the rest as it is by now.
    ///
    /// # Errors
    /// As [`open`](Self::open); the file cannot be written.
    pub(super) fn replace(&self, table: &str) -> Result<(), String> {
        let (before, after) = self.around()?;
        let text = format!("{before}\n{}\n\n{after}", table.trim());
        std::fs::write(&self.path, text).map_err(|error| at(&self.path, &error))
    }

    /// The text up to the first mark and from the second one on, with the marks.
    fn around(&self) -> Result<(String, String), String> {
        let text = std::fs::read_to_string(&self.path).map_err(|error| at(&self.path, &error))?;
        let missing = |mark: &str| format!("{}: has no line {:?}", self.path.display(), mark.trim());
        let begin = text.find(BEGIN).ok_or_else(|| missing(BEGIN))? + BEGIN.len();
        let end = begin + text[begin..].find(END).ok_or_else(|| missing(END))?;
        Ok((text[..begin].to_owned(), text[end..].to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("# Head\n{BEGIN}old\n{END}\ntail\n")).unwrap();
        let document = Document::open(file.path()).unwrap();
        for table in ["| 1 |\n", "\n| 2 |"] {
            document.replace(table).unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!(text, format!("# Head\n{BEGIN}\n{}\n\n{END}\ntail\n", table.trim()));
        }
    }

    #[test]
    fn a_file_without_marks_is_refused_and_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display().to_string();
        for (text, missing) in [("", BEGIN), (BEGIN, END), (END, BEGIN)] {
            std::fs::write(file.path(), text).unwrap();
            let error = Document::open(file.path()).unwrap_err();
            assert_eq!(error, format!("{path}: has no line {:?}", missing.trim()));
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
        }
    }
}
