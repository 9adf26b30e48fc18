//! Reads the TOML of a definition into [`Definition`], every key and string with its place.
//!
//! Unknown keys are problems, never ignored: a misspelt `direction` must not silently mean two-way.

use crate::base::ids::{CARRIER_NAME_TEXT, is_carrier_name};
use crate::base::limits::{LETTER_PART_BYTES, LETTER_PART_BYTES_MAX, LETTER_PART_BYTES_MIN};
use crate::rules::definition::{
    CarrierSettings, Definition, MergeErrors, RawAttribute, RawColumn, RawMember, RawModel, RawObject, RawRule, RawSource, RawTable,
};
use crate::rules::problem::{At, Problem, Report, SourceFile, Text, did_you_mean};
use crate::rules::retention::DAY_SECONDS;
use std::ops::RangeInclusive;
use toml_edit::{Document, Item, TableLike, Value};

/// Words that cannot name a rule, since `visible` may hold them itself.
const RULE_KEYS: &[&str] = &["rule", "where", "window"];
/// What `[server]` may hold.
const SERVER_KEYS: &[&str] = &[
    "name",
    "database",
    "listen",
    "root",
    "identity",
    "alert_command",
    "day_starts",
    "compare_every",
    "keep_days",
    "keep_files",
    "stale_days",
    "stale_outbox_mb",
    "send_kb_per_second",
    "min_free_mb",
    "sessions_max",
    "sessions_per_address",
    "merge_errors",
];
/// Version of the definition language.
const VERSION: i64 = 1;

/// Returns the file patterns that the main file's `include` names.
///
/// # Errors
/// The first problem: the file is not TOML, or `include` is no list of strings.
pub fn includes(main: &SourceFile) -> Result<Vec<String>, Problem> {
    let files = std::slice::from_ref(main);
    let mut report = Report::new(files);
    let mut patterns = Vec::new();
    let mut reader = Reader { file: 0, text: &main.text, report: &mut report };
    if let Some(document) = reader.parse()
        && let Some(item) = document.get("include")
    {
        patterns = reader.list(item, "include").into_iter().map(|text| text.value).collect();
    }
    match report.finish().0.into_iter().next() {
        Some(problem) => Err(problem),
        None => Ok(patterns),
    }
}

/// Reads all files into one definition; the first is the main one.
pub(crate) fn read(files: &[SourceFile], report: &mut Report<'_>) -> Definition {
    let mut definition = Definition::default();
    for (file, source) in files.iter().enumerate() {
        Reader { file, text: &source.text, report }.read(&mut definition);
    }
    definition
}

struct Reader<'r, 'f> {
    file: usize,
    text: &'r str,
    report: &'r mut Report<'f>,
}

impl Reader<'_, '_> {
    fn parse(&mut self) -> Option<Document<String>> {
        match Document::parse(self.text.to_owned()) {
            Ok(document) => Some(document),
            Err(error) => {
                let at = self.at(error.span().map_or(0, |span| span.start));
                self.report.problem(at, error.message().lines().collect::<Vec<_>>().join(", "), None);
                None
            }
        }
    }

    fn read(&mut self, definition: &mut Definition) {
        let Some(document) = self.parse() else { return };
        let root: &dyn TableLike = document.as_table();
        let main = self.file == 0;
        if !main {
            for key in ["server", "carrier", "include"] {
                if let Some(at) = root.key(key).map(|_| self.key_at(root, key)) {
                    self.report.problem(at, format!("`{key}` belongs in the main file"), None);
                }
            }
        }
        self.known(root, &["version", "server", "carrier", "include", "reference", "node", "object", "model", "table"], "the definition");
        match root.get("version") {
            Some(item) if item.as_integer() == Some(VERSION) => {}
            Some(item) => {
                let at = self.item_at(item);
                self.report.problem(at, "this program reads definitions of version 1", Some("version = 1".into()));
            }
            None if main => {
                self.report.problem(At { file: 0, offset: 0 }, "the definition has no version", Some("begin with  version = 1".into()))
            }
            None => {}
        }
        if let Some(item) = root.get("include") {
            self.list(item, "include");
        }
        if main && let Some(server) = root.get("server").and_then(|item| self.table(item, "[server]")) {
            self.server(server, definition);
        }
        if main {
            for (name, item) in self.entries(root, "carrier", "[carrier]") {
                if let Some(carrier) = self.carrier(name, item) {
                    definition.settings.carriers.push(carrier);
                }
            }
        }
        if let Some(item) = root.get("reference") {
            definition.reference.extend(self.list(item, "reference"));
        }
        for (name, item) in self.entries(root, "node", "[node]") {
            if let Some(attribute) = self.attribute(name, item) {
                definition.attributes.push(attribute);
            }
        }
        for (name, item) in self.entries(root, "object", "[object]") {
            if let Some(object) = self.object(name, item) {
                definition.objects.push(object);
            }
        }
        for (name, item) in self.entries(root, "model", "[model]") {
            if let Some(model) = self.model(name, item) {
                definition.models.push(model);
            }
        }
        for (name, item) in self.entries(root, "table", "[table]") {
            if let Some(table) = self.table_options(name, item) {
                definition.tables.push(table);
            }
        }
    }

    fn server(&mut self, server: &dyn TableLike, definition: &mut Definition) {
        self.known(server, SERVER_KEYS, "[server]");
        let settings = &mut definition.settings.server;
        if let Some(name) = self.optional_text(server, "name") {
            let fits = (1..=64).contains(&name.value.len()) && !name.value.chars().any(char::is_control);
            if !fits {
                self.report.problem(name.at, "a server's name has 1 to 64 printable characters", None);
            }
            settings.name = name.value;
        }
        if let Some(database) = self.optional_text(server, "database") {
            settings.database = Some(database.value);
        }
        if let Some(root) = self.optional_text(server, "root") {
            settings.root = root.value;
        }
        if let Some(identity) = self.optional_text(server, "identity") {
            settings.identity = identity.value;
        }
        if let Some(listen) = self.optional_text(server, "listen") {
            let port = listen.value.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
            if port.is_none() {
                self.report.problem(listen.at, format!("listen: `{}` is not an address", listen.value), Some("\"0.0.0.0:40400\"".into()));
            }
            settings.listen = listen.value;
        }
        if let Some(command) = self.optional_text(server, "alert_command") {
            settings.alert_command = Some(command.value);
        }
        if let Some(time) = self.optional_text(server, "day_starts") {
            let parts = time.value.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2);
            let minutes = parts.and_then(|(hours, minutes)| Some((hours.parse::<u16>().ok()?, minutes.parse::<u16>().ok()?)));
            match minutes.filter(|(hours, minutes)| *hours < 24 && *minutes < 60) {
                Some((hours, minutes)) => settings.day_starts_minutes = hours * 60 + minutes,
                None => {
                    self.report.problem(time.at, format!("day_starts: `{}` is not a time of day", time.value), Some("\"03:00\"".into()))
                }
            }
        }
        if let Some(kilobytes) = self.optional_number(server, "send_kb_per_second", 64..=1 << 30) {
            settings.send_bytes_per_second = Some(kilobytes.unsigned_abs() << 10);
        }
        if let Some(megabytes) = self.optional_number(server, "min_free_mb", 0..=1 << 40) {
            settings.min_free_bytes = megabytes.unsigned_abs() << 20;
        }
        for (key, place) in [("sessions_max", &mut settings.sessions_max), ("sessions_per_address", &mut settings.sessions_per_address)] {
            if let Some(sessions) = self.optional_number(server, key, 1..=100_000) {
                *place = usize::try_from(sessions).unwrap_or(usize::MAX);
            }
        }
        if let Some(every) = self.optional_text(server, "compare_every") {
            match seconds_of(&every.value) {
                Some(seconds) => settings.compare_every_seconds = seconds,
                None => {
                    let message = format!("compare_every: `{}` is no time from 1s to 24h", every.value);
                    self.report.problem(every.at, message, Some("\"10m\"".into()))
                }
            }
        }
        if let Some(mode) = self.optional_text(server, "merge_errors") {
            match MergeErrors::from_name(&mode.value) {
                Some(mode) => settings.merge_errors = mode,
                None => {
                    let message = format!("merge_errors: `{}` is none of hold, stop, disable-node", mode.value);
                    self.report.problem(mode.at, message, Some("\"hold\"".into()))
                }
            }
        }
        let retention = &mut settings.retention;
        if let Some(days) = self.optional_number(server, "keep_days", 0..=36_500) {
            retention.keep_seconds = days * DAY_SECONDS;
        }
        if let Some(files) = self.optional_number(server, "keep_files", 0..=i64::MAX) {
            retention.keep_files = files.unsigned_abs();
        }
        if let Some(days) = self.optional_number(server, "stale_days", 1..=36_500) {
            retention.stale_seconds = days * DAY_SECONDS;
        }
        if let Some(megabytes) = self.optional_number(server, "stale_outbox_mb", 1..=1 << 40) {
            retention.stale_bytes = megabytes.unsigned_abs() << 20;
        }
    }

    fn carrier(&mut self, name: Text, item: &Item) -> Option<CarrierSettings> {
        let place = format!("[carrier.{}]", name.value);
        let table = self.table(item, &place)?;
        self.known(
            table,
            &["path", "part_kb", "room_mb", "resend_hours", "patience_minutes", "ssh_key", "ssh_known_hosts", "ssh_password_file"],
            &place,
        );
        if !is_carrier_name(&name.value) {
            self.report.problem(name.at, CARRIER_NAME_TEXT, None);
            return None;
        }
        let Some(path) = self.optional_text(table, "path") else {
            self.report.problem(name.at, format!("{place} has no path"), Some("path = \"/media/stick\"".into()));
            return None;
        };
        let kilobytes = LETTER_PART_BYTES_MIN.cast_signed() >> 10..=LETTER_PART_BYTES_MAX.cast_signed() >> 10;
        let part_bytes =
            self.optional_number(table, "part_kb", kilobytes).map_or(LETTER_PART_BYTES, |kilobytes| kilobytes.unsigned_abs() << 10);
        let room_bytes = self.optional_number(table, "room_mb", 0..=1 << 40).map_or(0, |megabytes| megabytes.unsigned_abs() << 20);
        let resend_seconds = self.optional_number(table, "resend_hours", 0..=24 * 366).unwrap_or(24) * 3_600;
        let patience_seconds = self.optional_number(table, "patience_minutes", 0..=24 * 60).unwrap_or(10) * 60;
        let ssh = ["ssh_key", "ssh_known_hosts", "ssh_password_file"].map(|key| self.optional_text(table, key).map(|text| text.value));
        Some(CarrierSettings { name: name.value, path: path.value, ssh, part_bytes, room_bytes, resend_seconds, patience_seconds })
    }

    fn attribute(&mut self, name: Text, item: &Item) -> Option<RawAttribute> {
        if let Some(path) = self.quiet_text(item) {
            return Some(RawAttribute { name, source: RawSource::Path(path) });
        }
        let Some(table) = item.as_table_like() else {
            let at = self.item_at(item);
            let hint = Some(format!("{0} = {{ type = \"integer\" }}   or   {0} = 'node.other -> table(column).column'", name.value));
            self.report.problem(at, format!("node attribute {} is neither a table nor a path", name.value), hint);
            return None;
        };
        let place = format!("[node] {}", name.value);
        self.known(table, &["type", "must_exist", "many"], &place);
        let kind = self.optional_text(table, "type");
        if kind.is_none() && table.get("type").is_none() {
            let hint = Some("type = \"integer\"  or  type = \"text\"".into());
            self.report.problem(name.at, format!("node attribute {} has no type", name.value), hint);
        }
        let must_exist = self.optional_text(table, "must_exist");
        let many = self.flag(table, "many");
        Some(RawAttribute { name, source: RawSource::Given { kind, must_exist, many } })
    }

    fn object(&mut self, name: Text, item: &Item) -> Option<RawObject> {
        let place = format!("[object.{}]", name.value);
        let table = self.table(item, &place)?;
        let keys = ["table", "members", "direction", "visible", "window", "writable", "give_away", "dangling", "conflict"];
        self.known(table, &keys, &place);
        let mut members = Vec::new();
        if let Some(item) = table.get("members") {
            for value in self.values(item, "members") {
                if let Some(member) = self.member(value) {
                    members.push(member);
                }
            }
        }
        let rules = table.get("visible").map(|item| self.rules(table, item)).unwrap_or_default();
        Some(RawObject {
            at: self.item_at(item),
            table: self.optional_text(table, "table"),
            members,
            direction: self.optional_text(table, "direction"),
            rules,
            window: self.optional_text(table, "window"),
            writable: self.flag(table, "writable"),
            give_away: self.flag(table, "give_away"),
            dangling: table.get("dangling").map(|item| self.list(item, "dangling")).unwrap_or_default(),
            conflict: self.optional_text(table, "conflict"),
            name,
        })
    }

    fn member(&mut self, value: &Value) -> Option<RawMember> {
        if value.is_str() {
            return Some(RawMember { table: self.value_text(value)?, on: Vec::new() });
        }
        let Some(table) = value.as_inline_table() else {
            let at = self.value_at(value);
            self.report.problem(
                at,
                "a member is a table's name",
                Some("\"payment\"  or  { table = \"payment\", on = \"sale_id\" }".into()),
            );
            return None;
        };
        self.known(table, &["table", "on"], "a member");
        let on = match table.get("on").and_then(Value::as_array) {
            Some(array) => array.iter().filter_map(|value| self.value_text(value)).collect(),
            None => TableLike::get(table, "on").and_then(|item| self.text(item, "on")).into_iter().collect(),
        };
        let name = TableLike::get(table, "table").and_then(|item| self.text(item, "table"));
        if name.is_none() {
            let at = self.value_at(value);
            self.report.problem(at, "a member without a table", Some("{ table = \"payment\", on = \"sale_id\" }".into()));
        }
        Some(RawMember { table: name?, on })
    }

    fn rules(&mut self, object: &dyn TableLike, item: &Item) -> Vec<RawRule> {
        let key = Text::plain("visible", self.key_at(object, "visible"));
        let rule = |name: Text, rule: Text| RawRule { name, rule, predicate: None, window: None };
        if let Some(text) = self.quiet_text(item) {
            return vec![rule(key, text)];
        }
        let Some(table) = self.table(item, "visible") else { return Vec::new() };
        if table.iter().any(|(key, _)| RULE_KEYS.contains(&key)) {
            return self.rule_table(key, table).into_iter().collect();
        }
        let mut rules = Vec::new();
        for (name, item) in self.named(table) {
            if !is_word(&name.value) {
                let hint = Some("letters, digits, `_` and `-`".into());
                self.report.problem(name.at, format!("`{}` cannot name a rule", name.value), hint);
            }
            if let Some(text) = self.quiet_text(item) {
                rules.push(rule(name, text));
            } else if let Some(table) = self.table(item, &format!("visible.{}", name.value)) {
                rules.extend(self.rule_table(name, table));
            }
        }
        rules
    }

    fn rule_table(&mut self, name: Text, table: &dyn TableLike) -> Option<RawRule> {
        self.known(table, RULE_KEYS, "a rule");
        let rule = self.optional_text(table, "rule");
        if rule.is_none() && table.get("rule").is_none() {
            let hint = Some("{ rule = 'everyone', where = \"..\" }".into());
            self.report.problem(name.at, format!("visible.{} has no rule", name.value), hint);
        }
        let (predicate, window) = (self.optional_text(table, "where"), self.optional_text(table, "window"));
        Some(RawRule { name, rule: rule?, predicate, window })
    }

    fn model(&mut self, name: Text, item: &Item) -> Option<RawModel> {
        let place = format!("[model.{}]", name.value);
        let table = self.table(item, &place)?;
        self.known(table, &["only", "without"], &place);
        if !is_word(&name.value) {
            self.report.problem(name.at, format!("`{}` cannot name a model", name.value), Some("letters, digits, `_` and `-`".into()));
        }
        let only = table.get("only").map(|item| self.list(item, "only"));
        let without = table.get("without").map(|item| self.list(item, "without")).unwrap_or_default();
        Some(RawModel { name, only, without })
    }

    fn table_options(&mut self, name: Text, item: &Item) -> Option<RawTable> {
        let place = format!("[table.{}]", name.value);
        let table = self.table(item, &place)?;
        self.known(table, &["omit", "dangling", "capture", "keys", "conflict", "delete", "column"], &place);
        let mut columns = Vec::new();
        for (column, item) in self.entries(table, "column", "column") {
            let place = format!("[table.{}.column.{}]", name.value, column.value);
            if let Some(options) = self.table(item, &place) {
                self.known(options, &["conflict", "direction"], &place);
                let (conflict, direction) = (self.optional_text(options, "conflict"), self.optional_text(options, "direction"));
                columns.push(RawColumn { name: column, conflict, direction });
            }
        }
        Some(RawTable {
            omit: table.get("omit").map(|item| self.list(item, "omit")).unwrap_or_default(),
            dangling: table.get("dangling").map(|item| self.list(item, "dangling")).unwrap_or_default(),
            capture: self.optional_text(table, "capture"),
            keys: self.optional_text(table, "keys"),
            conflict: self.optional_text(table, "conflict"),
            delete: self.optional_text(table, "delete"),
            columns,
            name,
        })
    }

    fn at(&self, offset: usize) -> At {
        At { file: self.file, offset }
    }

    fn item_at(&self, item: &Item) -> At {
        self.at(item.span().map_or(0, |span| span.start))
    }

    fn value_at(&self, value: &Value) -> At {
        self.at(value.span().map_or(0, |span| span.start))
    }

    fn key_at(&self, table: &dyn TableLike, key: &str) -> At {
        self.at(table.key(key).and_then(|key| key.span()).map_or(0, |span| span.start))
    }

    /// Returns the entries of a table, each with its key's place.
    fn named<'t>(&self, table: &'t dyn TableLike) -> Vec<(Text, &'t Item)> {
        table
            .iter()
            .map(|(name, item)| {
                let span = table.key(name).and_then(|key| key.span());
                let text = match span.clone().and_then(|span| self.text.get(span)) {
                    Some(raw) => Text::quoted(name, raw, self.at(span.map_or(0, |span| span.start))),
                    None => Text::plain(name, self.item_at(item)),
                };
                (text, item)
            })
            .collect()
    }

    fn entries<'t>(&mut self, table: &'t dyn TableLike, key: &str, place: &str) -> Vec<(Text, &'t Item)> {
        match table.get(key).and_then(|item| self.table(item, place)) {
            Some(inner) => self.named(inner),
            None => Vec::new(),
        }
    }

    fn known(&mut self, table: &dyn TableLike, allowed: &[&str], place: &str) {
        for (key, _) in table.iter().filter(|(key, _)| !allowed.contains(key)) {
            let hint = did_you_mean(key, allowed.iter().copied()).unwrap_or_else(|| format!("known here: {}", allowed.join(", ")));
            let at = self.key_at(table, key);
            self.report.problem(at, format!("unknown key `{key}` in {place}"), Some(hint));
        }
    }

    fn table<'t>(&mut self, item: &'t Item, place: &str) -> Option<&'t dyn TableLike> {
        let table = item.as_table_like();
        if table.is_none() {
            let at = self.item_at(item);
            self.report.problem(at, format!("{place} is {}, expected a table", with_article(item.type_name())), None);
        }
        table
    }

    fn quiet_text(&mut self, item: &Item) -> Option<Text> {
        item.as_value().filter(|value| value.is_str()).and_then(|value| self.value_text(value))
    }

    fn text(&mut self, item: &Item, what: &str) -> Option<Text> {
        match item.as_value() {
            Some(value) if value.is_str() => self.value_text(value),
            _ => {
                let at = self.item_at(item);
                self.report.problem(at, format!("`{what}` is {}, expected a string", with_article(item.type_name())), None);
                None
            }
        }
    }

    fn value_text(&mut self, value: &Value) -> Option<Text> {
        let at = self.value_at(value);
        let Some(text) = value.as_str() else {
            self.report.problem(at, format!("{}, expected a string", with_article(value.type_name())), None);
            return None;
        };
        Some(match value.span().and_then(|span| self.text.get(span)) {
            Some(raw) => Text::quoted(text, raw, at),
            None => Text::plain(text, at),
        })
    }

    fn optional_text(&mut self, table: &dyn TableLike, key: &str) -> Option<Text> {
        table.get(key).and_then(|item| self.text(item, key))
    }

    fn optional_number(&mut self, table: &dyn TableLike, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let item = table.get(key)?;
        let number = item.as_integer().filter(|number| range.contains(number));
        if number.is_none() {
            let at = self.item_at(item);
            self.report.problem(at, format!("`{key}` takes a whole number from {} to {}", range.start(), range.end()), None);
        }
        number
    }

    fn flag(&mut self, table: &dyn TableLike, key: &str) -> bool {
        let Some(item) = table.get(key) else { return false };
        item.as_bool().unwrap_or_else(|| {
            let at = self.item_at(item);
            self.report.problem(at, format!("`{key}` is {}, expected true or false", with_article(item.type_name())), None);
            false
        })
    }

    fn values<'t>(&mut self, item: &'t Item, what: &str) -> Vec<&'t Value> {
        match item.as_array() {
            Some(array) => array.iter().collect(),
            None => {
                let at = self.item_at(item);
                self.report.problem(
                    at,
                    format!("`{what}` is {}, expected a list", with_article(item.type_name())),
                    Some(format!("{what} = [\"..\"]")),
                );
                Vec::new()
            }
        }
    }

    fn list(&mut self, item: &Item, what: &str) -> Vec<Text> {
        self.values(item, what).into_iter().filter_map(|value| self.value_text(value)).collect()
    }
}

/// Returns whether a name is made of letters, digits, `_` and `-`.
pub(crate) fn is_word(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// Returns a type's name with its article.
fn with_article(name: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Reads `30s`, `10m` or `2h` as seconds, a day at most.
fn seconds_of(text: &str) -> Option<u32> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return None,
    };
    let seconds = number.parse::<u32>().ok()?.checked_mul(factor)?;
    (1..=86_400).contains(&seconds).then_some(seconds)
}
