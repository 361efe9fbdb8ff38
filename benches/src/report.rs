//! Results as Markdown, and the place in a file where they are kept; it judges no more than a figure against its goal.

use std::fmt::Write;

/// One table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// What a figure was meant to be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal(pub f64);

impl Goal {
    /// Met or missed; a figure that could not be measured is neither.
    #[must_use]
    pub fn verdict(self, figure: f64) -> &'static str {
        if figure.is_nan() {
            "not measured"
        } else if figure <= self.0 {
            "met"
        } else {
            "**missed**"
        }
    }
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(heads: &[&str]) -> Table {
        let heads = heads.iter().map(|&head| head.to_owned()).collect();
        Table { heads, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether it has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let rule = vec!["---".to_owned(); self.heads.len()];
        for row in [&self.heads, &rule].into_iter().chain(&self.rows) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

/// A time in nanoseconds, in three figures or so.
#[must_use]
pub fn nanos(figure: f64) -> String {
    match figure {
        _ if figure.is_nan() => "-".to_owned(),
        _ if figure < 10.0 => format!("{figure:.2}"),
        _ if figure < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// A ratio, in two or three figures.
#[must_use]
pub fn ratio(figure: f64) -> String {
    match figure {
        _ if figure.is_nan() => "-".to_owned(),
        _ if figure < 10.0 => format!("{figure:.2}"),
        _ => format!("{figure:.0}"),
    }
}

/// `text` with what stands between its markers replaced; `None` if it lacks them.
#[must_use]
pub fn replaced(text: &str, results: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{results}\n{END}{after}"))
}

/// Where results begin.
const BEGIN: &str = "<!-- results: written by the run -->";
/// Where they end.
const END: &str = "<!-- end of results -->";

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what stands between the markers changes, and a text without them is refused.
    #[test]
    fn results_replace_what_stands_between_the_markers() {
        let text = format!("head\n{BEGIN}\nold\n{END}\ntail");
        let new = replaced(&text, "new").unwrap();
        assert_eq!(new, format!("head\n{BEGIN}\n\nnew\n{END}\ntail"));
        assert_eq!(replaced("head", "new"), None);
    }

    /// Goal: a figure at its goal is met, and one that was not measured is not.
    #[test]
    fn goals_are_judged() {
        let verdicts = [1.0, 1.01, f64::NAN].map(|figure| Goal(1.0).verdict(figure));
        assert_eq!(verdicts, ["met", "**missed**", "not measured"]);
    }

    /// Goal: a table has a line for its heads, one that rules them off, and one for each row.
    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["1".to_owned(), "2".to_owned()]);
        assert_eq!(table.markdown(), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
