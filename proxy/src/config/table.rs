//! Walks a parsed TOML document and notes everything wrong on the way instead of stopping at the
//! first mistake. A table knows which keys were asked for; what is left over at the end is unknown.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::report::{Fault, Report, Severity, quoted};
use super::scalar;

/// A value with its place.
#[derive(Clone)]
pub(super) struct Item<'d> {
    /// Path from the root, such as `route[2].path`.
    pub(super) key: String,
    /// Bytes of the value.
    pub(super) span: Range<usize>,
    value: &'d DeValue<'d>,
}

impl<'d> Item<'d> {
    pub(super) fn str(&self) -> Result<&'d str, Fault> {
        match self.value {
            DeValue::String(text) => Ok(text),
            other => Err(wrong_type(other, "text in quotes")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Fault> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(wrong_type(other, "true or false")),
        }
    }

    /// A whole number within `bounds`.
    pub(super) fn number(&self, bounds: &RangeInclusive<u64>) -> Result<u64, Fault> {
        match self.value {
            DeValue::Integer(digits) => scalar::within(integer(digits)?, bounds),
            other => Err(wrong_type(other, "a whole number")),
        }
    }

    /// A number of bytes within `bounds`: a whole number, or text with a unit.
    pub(super) fn size(&self, bounds: &RangeInclusive<u64>) -> Result<u64, Fault> {
        match self.value {
            DeValue::Integer(digits) => scalar::within(integer(digits)?, bounds),
            DeValue::String(text) => scalar::within(scalar::size(text)?.into(), bounds),
            other => Err(wrong_type(other, "a number of bytes, or text such as \"32KiB\"")),
        }
    }

    /// A duration within `bounds`.
    pub(super) fn duration(&self, bounds: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
        match self.value {
            DeValue::String(text) => scalar::duration(text, bounds),
            DeValue::Integer(digits) => {
                Err(wrong_type(self.value, "text with a unit, such as \"30s\"")
                    .hint(format!("for seconds write \"{}s\"", digits.as_str())))
            }
            other => Err(wrong_type(other, "text with a unit, such as \"30s\"")),
        }
    }

    /// One of `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.str()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let listed: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let fault = Fault::new(format!("{} is not known here", quoted(text)), listed.join(" or "));
        Err(match nearest(text, &names) {
            Some(name) => fault.hint(format!("did you mean \"{name}\"?")),
            None => fault,
        })
    }

    pub(super) fn is_bool(&self) -> bool {
        self.value.is_bool()
    }

    /// The elements of an array; a single value counts as an array of one.
    pub(super) fn list(&self) -> Vec<Item<'d>> {
        match self.value {
            DeValue::Array(elements) => elements
                .iter()
                .enumerate()
                .map(|(at, element)| Item {
                    key: format!("{}[{}]", self.key, at + 1),
                    span: element.span(),
                    value: element.get_ref(),
                })
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// The value as a table.
    pub(super) fn table(&self) -> Result<Table<'d>, Fault> {
        match self.value {
            DeValue::Table(table) => Ok(Table::new(self.key.clone(), self.span.clone(), table)),
            other => Err(wrong_type(other, "a table")),
        }
    }

    pub(super) fn error(&self, report: &mut Report, fault: Fault) {
        report.push(Severity::Error, &self.key, self.span.clone(), fault);
    }

    pub(super) fn warning(&self, report: &mut Report, fault: Fault) {
        report.push(Severity::Warning, &self.key, self.span.clone(), fault);
    }

    /// Notes the fault, if there is one.
    pub(super) fn note<T>(&self, report: &mut Report, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.error(report, fault)).ok()
    }
}

/// A table that is being read.
pub(super) struct Table<'d> {
    key: String,
    span: Range<usize>,
    table: &'d DeTable<'d>,
    asked: Vec<&'static str>,
}

impl<'d> Table<'d> {
    pub(super) fn root(table: &'d Spanned<DeTable<'d>>) -> Self {
        Self::new(String::new(), 0..0, table.get_ref())
    }

    fn new(key: String, span: Range<usize>, table: &'d DeTable<'d>) -> Self {
        Self { key, span, table, asked: Vec::new() }
    }

    fn path(&self, key: &str) -> String {
        // A key may be any text in quotes; only a bare one is shown as it stands.
        let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let key = if key.bytes().all(bare) { key.to_owned() } else { quoted(key) };
        if self.key.is_empty() { key } else { format!("{}.{key}", self.key) }
    }

    /// The value under `key`.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Item<'d>> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Item { key: self.path(key), span: value.span(), value: value.get_ref() })
    }

    /// The value under `key` through `read`; None when it is absent or wrong, and the latter is
    /// noted.
    pub(super) fn read<T>(
        &mut self,
        report: &mut Report,
        key: &'static str,
        read: impl FnOnce(&Item<'d>) -> Result<T, Fault>,
    ) -> Option<T> {
        let item = self.get(key)?;
        item.note(report, read(&item))
    }

    /// As [`Table::get`]; an absent key is noted.
    pub(super) fn need(
        &mut self,
        report: &mut Report,
        key: &'static str,
        hint: &str,
    ) -> Option<Item<'d>> {
        let item = self.get(key);
        if item.is_none() {
            self.missing(report, key, hint);
        }
        item
    }

    pub(super) fn missing(&self, report: &mut Report, key: &str, hint: &str) {
        let fault = Fault::that("is missing", "").hint(hint);
        report.push(Severity::Error, &self.path(key), self.span.clone(), fault);
    }

    /// The tables of an array of tables such as `[[route]]`. With `needed`, having none is noted,
    /// and `needed` says how to begin one.
    pub(super) fn tables(
        &mut self,
        report: &mut Report,
        key: &'static str,
        needed: Option<&str>,
    ) -> Vec<Table<'d>> {
        let item = self.get(key);
        let list = item.as_ref().map(Item::list).unwrap_or_default();
        if let (true, Some(hint)) = (list.is_empty(), needed) {
            self.missing(report, key, hint);
        }
        list.into_iter()
            .filter_map(|element| {
                let read = element
                    .table()
                    .map_err(|fault| fault.hint(format!("begin each one with [[{key}]]")));
                element.note(report, read)
            })
            .collect()
    }

    /// Every entry, whatever its key, for tables whose keys are data: the key, a place to note what
    /// is wrong with the key, and the value.
    pub(super) fn entries(&self) -> Vec<(&'d str, Item<'d>, Item<'d>)> {
        self.table
            .iter()
            .map(|(name, value)| {
                let key = self.path(name.get_ref());
                let at = |span| Item { key: key.clone(), span, value: value.get_ref() };
                (name.get_ref().as_ref(), at(name.span()), at(value.span()))
            })
            .collect()
    }

    /// The table as one value, for problems that belong to all of it.
    pub(super) fn place(&self) -> (String, Range<usize>) {
        (self.key.clone(), self.span.clone())
    }

    /// Refuses every key that was not asked for. `top` are the keys of the file's top level, so
    /// that one of them that slipped below a `[table]` is recognised.
    pub(super) fn finish(self, report: &mut Report, top: &[&str]) {
        for (name, _) in self.table {
            let found: &str = name.get_ref();
            if self.asked.contains(&found) {
                continue;
            }
            let fault = Fault::that("is not a known key", "");
            let fault = if top.contains(&found) {
                fault.hint(format!(
                    "`{found}` belongs to the top of the file, above the first [table]"
                ))
            } else if let Some(name) = nearest(found, &self.asked) {
                fault.hint(format!("did you mean `{name}`?"))
            } else {
                fault.hint(format!("known here: {}", self.asked.join(", ")))
            };
            report.push(Severity::Error, &self.path(found), name.span(), fault);
        }
    }
}

/// The known word that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.replace('-', "_").to_lowercase();
    let most = (word.len() / 3).clamp(1, 3);
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&word, name), *name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

fn integer(digits: &DeInteger<'_>) -> Result<i128, Fault> {
    i128::from_str_radix(digits.as_str(), digits.radix())
        .map_err(|_| Fault::new(format!("{digits} does not fit any bound"), ""))
}

fn wrong_type(value: &DeValue<'_>, expected: &str) -> Fault {
    let found = match value {
        DeValue::String(text) => format!("the text {}", quoted(text)),
        DeValue::Integer(digits) => format!("the whole number {digits}"),
        DeValue::Float(digits) => format!("the fraction {digits}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    Fault::that(format!("is {found}"), format!("expected {expected}"))
}
