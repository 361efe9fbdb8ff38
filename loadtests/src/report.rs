//! Small tables and the verdict at the end; it measures nothing.

use std::fmt;
use std::process::ExitCode;

/// A table with a heading for each column, printed with aligned columns.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, column| row.get(column).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| cell(row, column).len()).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            let line: Vec<String> = widths
                .iter()
                .enumerate()
                .map(|(column, &width)| format!("{:>width$}", cell(row, column)))
                .collect();
            writeln!(f, "  {}", line.join("  "))?;
        }
        Ok(())
    }
}

/// What did not hold. Nothing: the test passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// One sentence for each thing that did not hold.
    pub(crate) failures: Vec<String>,
}

impl Verdict {
    /// Notes `said` unless `holds`.
    pub(crate) fn check(&mut self, holds: bool, said: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(said());
        }
    }

    /// Takes over what another verdict noted.
    pub(crate) fn join(&mut self, other: Verdict) {
        self.failures.extend(other.failures);
    }

    /// Whether everything held.
    pub(crate) fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Prints each failure and the line `PASS …` or `FAIL …`; gives the exit code.
    #[must_use]
    pub(crate) fn tell(&self, claim: &str) -> ExitCode {
        for failure in self.failures.iter().take(SHOWN) {
            println!("  not so: {failure}");
        }
        let hidden = self.failures.len().saturating_sub(SHOWN);
        if hidden > 0 {
            println!("  and {hidden} more");
        }
        if self.passed() {
            println!("PASS {claim}");
            ExitCode::SUCCESS
        } else {
            println!("FAIL {claim}");
            ExitCode::FAILURE
        }
    }

    /// The verdict of a control: a run with a fault built in must be caught.
    #[must_use]
    pub(crate) fn tell_control(&self, fault: &str) -> ExitCode {
        for failure in self.failures.iter().take(SHOWN) {
            println!("  caught: {failure}");
        }
        if self.passed() {
            println!("FAIL control: {fault} was not caught");
            ExitCode::FAILURE
        } else {
            println!("PASS control: {fault} was caught");
            ExitCode::SUCCESS
        }
    }
}

/// How many failures are printed.
const SHOWN: usize = 20;

/// The median and the maximum of some numbers.
pub(crate) fn median_and_most(mut numbers: Vec<u64>) -> (u64, u64) {
    numbers.sort_unstable();
    let middle = numbers.get(numbers.len() / 2).copied().unwrap_or(0);
    (middle, numbers.last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: one failure fails, and a control passes exactly when its run fails.
    #[test]
    fn a_verdict_is_its_failures() {
        let mut verdict = Verdict::default();
        verdict.check(true, || "never said".to_owned());
        assert!(verdict.passed());
        assert_eq!(verdict.tell_control("a fault"), ExitCode::FAILURE);
        verdict.check(false, || "one and one is three".to_owned());
        assert_eq!(verdict.failures, ["one and one is three"]);
        assert_eq!(verdict.tell("sums"), ExitCode::FAILURE);
        assert_eq!(verdict.tell_control("a fault"), ExitCode::SUCCESS);
    }

    /// Goal: columns are as wide as their widest cell.
    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["a", "bb"]);
        table.row(vec!["100".to_owned(), "2".to_owned()]);
        assert_eq!(table.to_string(), "    a  bb\n  100   2\n");
    }

    /// Goal: the middle and the end of some numbers, in whatever order they come, also of none.
    #[test]
    fn medians() {
        assert_eq!(median_and_most(vec![3, 1, 2]), (2, 3));
        assert_eq!(median_and_most(Vec::new()), (0, 0));
    }
}
