//! The entries of `RUNNER_CONFIG`, which route jobs to VMs.

use serde_json::{Map, Value};

use super::{Problems, Validator, check, location, mistakes};
use crate::fleet::{Entry, Fleet, Label, RegisterIn, RepoName, RunnerNames, StopOptions, Vm};

const FIELDS: [&str; 10] = [
    "repo",
    "labels",
    "vm_instance_name",
    "vm_instance_zone",
    "runner_names",
    "runner_labels",
    "discard_local_ssd",
    "register",
    "drain",
    "suspend",
];

impl Problems {
    pub(super) fn fleet(
        &mut self,
        value: Option<String>,
        warnings: &mut Vec<String>,
    ) -> Option<Fleet> {
        let elements =
            self.required("RUNNER_CONFIG", value, |text| match serde_json::from_str(text) {
                Ok(Value::Array(elements)) if elements.is_empty() => {
                    Err("is an empty array: no job would get a VM".into())
                }
                Ok(Value::Array(elements)) => Ok(elements),
                Ok(Value::Object(_)) => Err("is not a JSON array: put [ ] around it".into()),
                Ok(_) => Err("is not a JSON array".into()),
                Err(error) => Err(mistakes::not_json(text, &error)),
            })?;
        let before = self.0.len();
        let entries: Vec<Entry> = elements
            .iter()
            .enumerate()
            .filter_map(|(nth, element)| self.entry(nth, element, warnings))
            .collect();
        if self.0.len() > before {
            return None;
        }
        let fleet = Fleet::new(entries);
        warnings.extend(fleet.shadowed().into_iter().map(|(earlier, later)| {
            format!("RUNNER_CONFIG[{later}]: never matches: RUNNER_CONFIG[{earlier}] takes all of its jobs")
        }));
        warnings.extend(owners(&fleet));
        Some(fleet)
    }

    /// Reads an entry. An unknown field is a warning, or a problem beside others: it may be the one that is missing.
    fn entry(&mut self, nth: usize, element: &Value, warnings: &mut Vec<String>) -> Option<Entry> {
        let Value::Object(fields) = element else {
            self.add(format_args!("RUNNER_CONFIG[{nth}]"), "is not a JSON object");
            return None;
        };
        let entry = self.known_fields(nth, fields, warnings);
        for field in fields.keys().filter(|field| !FIELDS.contains(&field.as_str())) {
            let meant = mistakes::nearest(field, &FIELDS)
                .map(|meant| format!(": {meant} may be meant"))
                .unwrap_or_default();
            let field: String = field.chars().take(40).flat_map(char::escape_default).collect();
            let place = format!("RUNNER_CONFIG[{nth}].{field}");
            match entry {
                Some(_) => warnings
                    .push(format!("{place}: is not a field of an entry and is ignored{meant}")),
                None => self.add(place, format_args!("is not a field of an entry{meant}")),
            }
        }
        entry
    }

    fn known_fields(
        &mut self,
        nth: usize,
        fields: &Map<String, Value>,
        warnings: &mut Vec<String>,
    ) -> Option<Entry> {
        let repo = self.text(nth, fields, "repo", repo_name);
        let labels = self.texts(nth, fields, "labels", label);
        let name = self.text(nth, fields, "vm_instance_name", instance_name);
        let zone = self.text(nth, fields, "vm_instance_zone", location);
        let runner_names = match fields.get("runner_names") {
            None | Some(Value::Null) => name.clone().map(|name| vec![name]),
            Some(_) => self.texts(nth, fields, "runner_names", runner_name),
        };
        let runner_labels = match fields.get("runner_labels") {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(_) => self.texts(nth, fields, "runner_labels", label),
        };
        let discard_local_ssd = self.flag(nth, fields, "discard_local_ssd");
        let drain = self.flag(nth, fields, "drain");
        let suspend = self.flag(nth, fields, "suspend");
        let register = match fields.get("register") {
            None | Some(Value::Null) => Some(None),
            Some(Value::String(place)) if place == "repository" => {
                Some(Some(RegisterIn::Repository))
            }
            Some(Value::String(place)) if place == "organization" => {
                Some(Some(RegisterIn::Organization))
            }
            Some(_) => {
                self.add(
                    format_args!("RUNNER_CONFIG[{nth}].register"),
                    "is neither \"repository\" nor \"organization\"",
                );
                None
            }
        };
        let register = register?;
        if drain == Some(true) && register.is_none() {
            self.add(
                format_args!("RUNNER_CONFIG[{nth}].drain"),
                "needs register: the runner is removed at each stop, and the VM has to register it again",
            );
            return None;
        }
        let labels: Vec<Label> = labels?.into_iter().map(Into::into).collect();
        let runner_labels: Vec<Label> = runner_labels?.into_iter().map(Into::into).collect();
        let known = |label: &&Label| runner_labels.is_empty() || runner_labels.contains(label);
        if let Some(odd) = labels.iter().position(|label| !known(&label)) {
            warnings.push(format!(
                "RUNNER_CONFIG[{nth}].labels[{odd}]: is not among runner_labels, and jobs are matched by those alone"
            ));
        }
        if zone.as_deref().is_some_and(is_region) {
            warnings.push(format!(
                "RUNNER_CONFIG[{nth}].vm_instance_zone: is a region; a zone ends with a letter, such as us-central1-a"
            ));
        }
        if repo.as_deref().is_some_and(|repo| repo.ends_with(".git")) {
            warnings.push(format!(
                "RUNNER_CONFIG[{nth}].repo: no repository is named so: leave out .git"
            ));
        }
        Some(Entry {
            repo: repo?.into(),
            labels,
            runner_labels,
            vm: Vm::new(name?, zone?),
            runner_names: RunnerNames::parse(runner_names?.iter().map(String::as_str)),
            stop: StopOptions {
                discard_local_ssd: discard_local_ssd?,
                drain: drain?,
                suspend: suspend?,
            },
            register,
        })
    }

    /// A field that is true or false, and false by default.
    fn flag(&mut self, nth: usize, fields: &Map<String, Value>, name: &str) -> Option<bool> {
        match fields.get(name) {
            None | Some(Value::Null) => Some(false),
            Some(Value::Bool(on)) => Some(*on),
            Some(_) => {
                self.add(format_args!("RUNNER_CONFIG[{nth}].{name}"), "is neither true nor false");
                None
            }
        }
    }

    fn text(
        &mut self,
        nth: usize,
        fields: &Map<String, Value>,
        field: &str,
        read: Validator,
    ) -> Option<String> {
        let place = format!("RUNNER_CONFIG[{nth}].{field}");
        let Some(Value::String(text)) = fields.get(field) else {
            self.add(
                place,
                if fields.contains_key(field) { "is not a string" } else { "is missing" },
            );
            return None;
        };
        read(text.trim()).map_err(|problem| self.add(place, problem)).ok()
    }

    fn texts(
        &mut self,
        nth: usize,
        fields: &Map<String, Value>,
        field: &str,
        read: Validator,
    ) -> Option<Vec<String>> {
        let place = format!("RUNNER_CONFIG[{nth}].{field}");
        let Some(Value::Array(elements)) = fields.get(field) else {
            self.add(
                place,
                if fields.contains_key(field) {
                    r#"is not an array, such as ["self-hosted"]"#
                } else {
                    "is missing"
                },
            );
            return None;
        };
        if elements.is_empty() {
            let why = if field == "labels" {
                ": the entry would match GitHub-hosted jobs too"
            } else {
                ""
            };
            self.add(place, format_args!("is empty{why}"));
            return None;
        }
        let texts: Vec<Option<String>> = elements
            .iter()
            .enumerate()
            .map(|(index, element)| {
                let read = element
                    .as_str()
                    .ok_or_else(|| "is not a string".to_owned())
                    .and_then(|t| read(t.trim()));
                read.map_err(|problem| self.add(format_args!("{place}[{index}]"), problem)).ok()
            })
            .collect();
        texts.into_iter().collect()
    }
}

/// One installation of the App serves one owner.
fn owners(fleet: &Fleet) -> Option<String> {
    let mut owners = fleet.entries().iter().map(|entry| entry.repo.owner());
    let first = owners.next()?;
    owners.any(|owner| !owner.eq_ignore_ascii_case(first)).then(|| {
        "RUNNER_CONFIG: names repositories of two owners; the App's installation serves one of them"
            .to_owned()
    })
}

/// A zone without its letter, such as `us-central1`.
fn is_region(zone: &str) -> bool {
    zone.split('-').count() == 2 && zone.ends_with(|c: char| c.is_ascii_digit())
}

/// <https://cloud.google.com/compute/docs/naming-resources>
fn instance_name(text: &str) -> Result<String, String> {
    let valid = text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    check(
        text,
        valid,
        "is not an instance name: lowercase letters, digits and hyphens, a letter first, 63 at most",
    )
}

fn repo_name(text: &str) -> Result<String, String> {
    let valid = RepoName::from(text).is_full_name();
    let problem = if text.contains("://") {
        "is a URL, not a repository's full name, owner/repo"
    } else {
        "is not a repository's full name, owner/repo"
    };
    check(text, valid, problem)
}

fn label(text: &str) -> Result<String, String> {
    check(
        text,
        !text.is_empty() && text.len() <= 256 && !text.contains(char::is_control),
        "is not a label",
    )
}

fn runner_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    let valid = !name.is_empty() && name.len() <= 128 && !name.contains(['*', '\n', '\r']);
    check(text, valid, "is not a runner's name, nor a prefix followed by *")
}
