//! Everything wrong with a file, in one report that points into it.
//!
//! A report never repeats key material: whatever stands between PEM markers in the file is masked
//! before a line of it is quoted.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, and somebody should look.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the file is refused for it.
    pub severity: Severity,
    /// Path of the key, such as `route[2].upstream`; elements of arrays are counted from 1. Empty
    /// when the problem belongs to no key.
    pub key: String,
    /// Where in the file, as byte offsets; None when the file could not be read.
    pub span: Option<Range<usize>>,
    /// Line, counted from 1; 0 without a span.
    pub line: usize,
    /// Column in characters, counted from 1; 0 without a span.
    pub column: usize,
    /// A whole sentence: the key, and what is wrong with its value.
    pub message: String,
    /// What is allowed there; may be empty.
    pub expected: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// All problems of one file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    file: PathBuf,
    /// The file's text with key material masked; same length and same line breaks.
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        Self { file: file.to_path_buf(), text: mask_pem(text), problems: Vec::new() }
    }

    /// A report with one error that belongs to no place in the file.
    pub(super) fn of_file(file: &Path, message: String, hint: Option<String>) -> Self {
        let mut report = Self::new(file, "");
        report.problems.push(Problem {
            severity: Severity::Error,
            key: String::new(),
            span: None,
            line: 0,
            column: 0,
            message,
            expected: String::new(),
            hint,
        });
        report
    }

    /// Notes a problem at `span`, which must lie within the text.
    pub(super) fn push(&mut self, severity: Severity, key: &str, span: Range<usize>, fault: Fault) {
        let start = span.start.min(self.text.len());
        let end = span.end.clamp(start, self.text.len());
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.problems.push(Problem {
            severity,
            key: key.to_owned(),
            span: Some(start..end),
            line: self.line_of(start),
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            message: match (key, fault.predicate) {
                ("", _) => fault.message,
                (_, true) => format!("`{key}` {}", fault.message),
                (_, false) => format!("`{key}`: {}", fault.message),
            },
            expected: fault.expected,
            hint: fault.hint,
        });
    }

    /// The line of a byte offset, counted from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.text.get(..offset).unwrap_or_default().matches('\n').count() + 1
    }

    /// Puts the problems in the order of the file.
    pub(super) fn sort(&mut self) {
        self.problems.sort_by_key(|problem| problem.span.as_ref().map(|span| span.start));
    }

    /// The file the report is about.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The problems, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether any problem refuses the file.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many problems of `severity` there are.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// The whole report as text for a terminal, with colours when `colour` is set. [`fmt::Display`]
    /// is the same without colours.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        if self.is_empty() {
            return String::new();
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let file = self.file.to_string_lossy();
        let groups: Vec<Group<'_>> =
            self.problems.iter().map(|problem| self.group(problem, &file)).collect();
        // One call per group: rendered together, line numbers of unrelated problems would be
        // aligned.
        let mut text = String::new();
        for group in groups {
            text.push_str(&renderer.render(&[group]));
            text.push_str("\n\n");
        }
        text.push_str(&self.summary());
        text.push('\n');
        text
    }

    /// One line: how many errors and warnings.
    #[must_use]
    pub fn summary(&self) -> String {
        let counted = |count: usize, noun: &str| match count {
            0 => None,
            1 => Some(format!("1 {noun}")),
            _ => Some(format!("{count} {noun}s")),
        };
        let counts: Vec<String> = [
            counted(self.count(Severity::Error), "error"),
            counted(self.count(Severity::Warning), "warning"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let counts = if counts.is_empty() { "no problem".to_owned() } else { counts.join(", ") };
        format!("{}: {counts}", self.file.display())
    }

    fn group<'r>(&'r self, problem: &'r Problem, file: &'r str) -> Group<'r> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let hint = problem.hint.as_deref().map(|hint| Level::HELP.message(hint));
        match &problem.span {
            None => {
                let title = level.primary_title(problem.message.as_str());
                match hint {
                    Some(hint) => title.element(hint),
                    None => Group::with_title(title),
                }
            }
            Some(span) => {
                let mut annotation = AnnotationKind::Primary.span(span.clone());
                if !problem.expected.is_empty() {
                    annotation = annotation.label(problem.expected.as_str());
                }
                let snippet = Snippet::source(self.text.as_str()).path(file).annotation(annotation);
                let group = level.primary_title(problem.message.as_str()).element(snippet);
                match hint {
                    Some(hint) => group.element(hint),
                    None => group,
                }
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

/// What is wrong with a value, before it is known where the value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What is wrong, naming the value.
    pub(super) message: String,
    /// Whether the message goes on from the key, as in "is missing".
    pub(super) predicate: bool,
    /// What is allowed; may be empty.
    pub(super) expected: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { message: message.into(), predicate: false, expected: expected.into(), hint: None }
    }

    /// What is wrong, as a predicate whose subject is the key.
    pub(super) fn that(predicate: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { predicate: true, ..Self::new(predicate, expected) }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// `value` in quotes, shortened, without control characters and without key material.
pub(super) fn quoted(value: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let masked = mask_pem(value);
    let shown: String = masked.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if shown.len() < masked.len() { "..." } else { "" };
    format!("\"{}{dots}\"", shown.escape_debug())
}

/// Replaces everything from a PEM begin marker to its end marker (or to the end) by `*`, byte for
/// byte, so that offsets and line breaks stay where they were.
pub(super) fn mask_pem(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN";
    const END: &str = "-----END";
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, secret) = rest.split_at(at);
        masked.push_str(before);
        let end = secret.find(END).unwrap_or(secret.len());
        let (secret, after) = secret.split_at(end);
        for byte in secret.bytes() {
            masked.push(if byte == b'\n' || byte == b'\r' { char::from(byte) } else { '*' });
        }
        rest = after;
    }
    masked.push_str(rest);
    masked
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn report(text: &str, span: Range<usize>, fault: Fault) -> Report {
        let mut report = Report::new(Path::new("tlsplice.toml"), text);
        report.push(Severity::Error, "workers", span, fault);
        report
    }

    #[test]
    fn a_problem_is_rendered_with_its_line_its_bound_and_what_to_do() {
        let fault = Fault::new("5000 is above 1024", "1 to 1024").hint("one per core is usual");
        let report = report("# é\nworkers = 5000\n", 15..19, fault);
        assert_eq!(
            report.to_string(),
            "\
error: `workers`: 5000 is above 1024
 --> tlsplice.toml:2:11
  |
2 | workers = 5000
  |           ^^^^ 1 to 1024
  |
  = help: one per core is usual

tlsplice.toml: 1 error
"
        );
        assert_eq!((report.problems[0].line, report.problems[0].column), (2, 11));
    }

    #[test]
    fn a_file_that_was_not_read_has_no_snippet() {
        let report = Report::of_file(Path::new("x.toml"), "cannot read x.toml".into(), None);
        assert_eq!(report.to_string(), "error: cannot read x.toml\n\nx.toml: 1 error\n");
    }

    #[test]
    fn colours_appear_only_when_asked_for() {
        let report = report("workers = 0\n", 10..11, Fault::new("0 is below 1", ""));
        assert!(report.render(true).contains('\u{1b}'));
        assert!(!report.render(false).contains('\u{1b}'));
    }

    #[test]
    fn a_span_beyond_the_text_is_cut_to_it() {
        let report = report("a", 5..9, Fault::new("x", ""));
        assert_eq!(report.problems[0].span, Some(1..1));
        assert!(report.to_string().contains("error: `workers`: x"));
    }

    #[test]
    fn key_material_in_the_file_is_never_quoted() {
        let text =
            "key = \"\"\"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\"\"\"\n";
        let report = report(text, 6..text.len() - 1, Fault::new("not a path", ""));
        assert!(!report.to_string().contains("SECRET"), "{report}");
        assert_eq!(quoted("-----BEGIN X-----SECRET"), format!("\"{}\"", "*".repeat(23)));
    }

    #[test]
    fn a_quoted_value_is_short_and_printable() {
        assert_eq!(quoted("a\u{1b}b"), "\"a\\u{1b}b\"");
        assert_eq!(quoted(&"x".repeat(200)).len(), 80 + 2 + 3);
    }

    proptest! {
        #[test]
        fn masking_keeps_length_and_lines(text in "(-----BEGIN|-----END|é|x|\n|\"){0,12}") {
            let masked = mask_pem(&text);
            prop_assert_eq!(masked.len(), text.len());
            prop_assert_eq!(masked.matches('\n').count(), text.matches('\n').count());
            prop_assert!(!masked.contains("-----BEGIN"));
        }
    }
}
