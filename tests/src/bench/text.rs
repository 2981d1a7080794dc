//! Figures as people read them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table};

use super::summary::Summary;

/// The lines of a table in which all columns but the first `names` have numbers.
#[must_use]
pub fn finished(mut table: Table, names: usize) -> String {
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Writes files, of these names and contents, to a directory that there may not be yet.
///
/// # Errors
///
/// If one cannot be written.
pub fn write_files(dir: &Path, files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    for (name, content) in files {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// A share of one as one of a hundred.
#[must_use]
pub fn percent(share: f64) -> f64 {
    share * 100.0
}

/// A median, and half the distance between the quartiles.
#[must_use]
pub fn spread(Summary { median, low, high }: Summary, digits: usize) -> String {
    format!("{median:.digits$} ±{:.digits$}", (high - low) / 2.0)
}
