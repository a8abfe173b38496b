//! The filter of a list request: comparisons joined by AND, OR, NOT and parentheses.
//!
//! <https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations/list>

use serde_json::Value;

use crate::emulators::wire::Problem;

/// A condition for the items of a list.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    Is {
        field: String,
        value: String,
        equal: bool,
    },
    /// The map has this key: `labels.owner:*`.
    Has {
        map: String,
        key: String,
    },
    Not(Box<Filter>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

impl Filter {
    /// Parses a filter on resources with these fields.
    pub(super) fn parse(text: &str, known: &[&str]) -> Result<Self, Problem> {
        let bad = || {
            Problem::invalid(format!(
                "Invalid value for field 'filter': '{text}'. Invalid list filter expression."
            ))
        };
        let tokens = Self::tokens(text).ok_or_else(bad)?;
        let mut rest = tokens.as_slice();
        let filter = Self::any(&mut rest, known).ok_or_else(bad)?;
        if rest.is_empty() { Ok(filter) } else { Err(bad()) }
    }

    fn tokens(text: &str) -> Option<Vec<String>> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                ' ' => {}
                '(' | ')' | '=' => tokens.push(c.to_string()),
                '!' => {
                    chars.next_if_eq(&'=')?;
                    tokens.push("!=".to_owned());
                }
                '"' => {
                    let quoted: String = chars.by_ref().take_while(|c| *c != '"').collect();
                    tokens.push(quoted);
                }
                _ => {
                    let mut word = c.to_string();
                    while let Some(c) = chars.next_if(|c| !" ()=!\"".contains(*c)) {
                        word.push(c);
                    }
                    tokens.push(word);
                }
            }
        }
        Some(tokens)
    }

    fn any(rest: &mut &[String], known: &[&str]) -> Option<Self> {
        let mut parts = vec![Self::all(rest, known)?];
        while rest.first().is_some_and(|word| word == "OR") {
            *rest = &rest[1..];
            parts.push(Self::all(rest, known)?);
        }
        Some(Self::Any(parts))
    }

    fn all(rest: &mut &[String], known: &[&str]) -> Option<Self> {
        let mut parts = vec![Self::one(rest, known)?];
        // Adjacent expressions in parentheses are joined by AND too.
        while rest.first().is_some_and(|word| word == "AND" || word == "(") {
            if rest[0] == "AND" {
                *rest = &rest[1..];
            }
            parts.push(Self::one(rest, known)?);
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[String], known: &[&str]) -> Option<Self> {
        match *rest {
            [first, more @ ..] if first == "NOT" => {
                *rest = more;
                Some(Self::Not(Box::new(Self::one(rest, known)?)))
            }
            [first, more @ ..] if first == "(" => {
                *rest = more;
                let inner = Self::any(rest, known)?;
                let (close, more) = rest.split_first()?;
                *rest = more;
                (close == ")").then_some(inner)
            }
            [has, more @ ..] if has.ends_with(":*") => {
                let (map, key) = has.strip_suffix(":*")?.split_once('.')?;
                *rest = more;
                let filter = Self::Has { map: map.to_owned(), key: key.to_owned() };
                known.contains(&map).then_some(filter)
            }
            [field, operator, value, more @ ..] => {
                let equal = match operator.as_str() {
                    "=" | "eq" => true,
                    "!=" | "ne" => false,
                    _ => return None,
                };
                *rest = more;
                let known = known.contains(&field.as_str());
                let filter = Self::Is { field: field.clone(), value: value.clone(), equal };
                known.then_some(filter)
            }
            _ => None,
        }
    }

    pub(super) fn matches(&self, item: &Value) -> bool {
        match self {
            Self::Is { field, value, equal } => {
                let is = match &item[field] {
                    Value::String(text) => text == value,
                    Value::Null => value.is_empty(),
                    other => value.parse::<Value>().is_ok_and(|value| value == *other),
                };
                is == *equal
            }
            Self::Has { map, key } => item[map].get(key).is_some(),
            Self::Not(inner) => !inner.matches(item),
            Self::All(parts) => parts.iter().all(|part| part.matches(item)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(item)),
        }
    }
}
