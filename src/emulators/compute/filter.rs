//! The filter of a list request: comparisons joined by AND, OR, NOT and parentheses.
//!
//! <https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations/list>

use serde_json::Value;

use super::api::OPERATION_FIELDS;
use crate::emulators::wire::Problem;

/// What an item has to be to be listed.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    Is { field: String, value: String, equal: bool },
    Not(Box<Filter>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

impl Filter {
    pub(super) fn parse(text: &str) -> Result<Self, Problem> {
        let bad = || {
            Problem::invalid(format!(
                "Invalid value for field 'filter': '{text}'. Invalid list filter expression."
            ))
        };
        let tokens = Self::tokens(text).ok_or_else(bad)?;
        let mut rest = tokens.as_slice();
        let filter = Self::any(&mut rest).ok_or_else(bad)?;
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

    fn any(rest: &mut &[String]) -> Option<Self> {
        let mut parts = vec![Self::all(rest)?];
        while rest.first().is_some_and(|word| word == "OR") {
            *rest = &rest[1..];
            parts.push(Self::all(rest)?);
        }
        Some(Self::Any(parts))
    }

    fn all(rest: &mut &[String]) -> Option<Self> {
        let mut parts = vec![Self::one(rest)?];
        // Expressions in parentheses that only stand side by side are joined by AND too.
        while rest.first().is_some_and(|word| word == "AND" || word == "(") {
            if rest[0] == "AND" {
                *rest = &rest[1..];
            }
            parts.push(Self::one(rest)?);
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[String]) -> Option<Self> {
        match *rest {
            [first, more @ ..] if first == "NOT" => {
                *rest = more;
                Some(Self::Not(Box::new(Self::one(rest)?)))
            }
            [first, more @ ..] if first == "(" => {
                *rest = more;
                let inner = Self::any(rest)?;
                let (close, more) = rest.split_first()?;
                *rest = more;
                (close == ")").then_some(inner)
            }
            [field, operator, value, more @ ..] => {
                let equal = match operator.as_str() {
                    "=" | "eq" => true,
                    "!=" | "ne" => false,
                    _ => return None,
                };
                *rest = more;
                let known = OPERATION_FIELDS.contains(&field.as_str());
                let filter = Self::Is { field: field.clone(), value: value.clone(), equal };
                known.then_some(filter)
            }
            _ => None,
        }
    }

    pub(super) fn admits(&self, item: &Value) -> bool {
        match self {
            Self::Is { field, value, equal } => {
                let is = match &item[field] {
                    Value::String(text) => text == value,
                    Value::Null => value.is_empty(),
                    other => value.parse::<Value>().is_ok_and(|value| value == *other),
                };
                is == *equal
            }
            Self::Not(inner) => !inner.admits(item),
            Self::All(parts) => parts.iter().all(|part| part.admits(item)),
            Self::Any(parts) => parts.iter().any(|part| part.admits(item)),
        }
    }
}
