//! The likely causes of values that cannot be read. They describe the mistake and never repeat the value.

/// The cause of a text that is not JSON, from the parser's `error`.
pub(super) fn not_json(text: &str, error: &serde_json::Error) -> String {
    let place = format!("is not JSON: line {}, column {}", error.line(), error.column());
    match cause(text, error) {
        Some(cause) => format!("{place}: {cause}"),
        None => place,
    }
}

fn cause(text: &str, error: &serde_json::Error) -> Option<&'static str> {
    if is_path(text) {
        return Some("it looks like a path: put the file's text here, or set RUNNER_CONFIG_FILE");
    }
    if text.contains(['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}']) {
        return Some("it has typographic quotes; JSON needs \" around names and texts");
    }
    if !text.starts_with(['[', '{', '\'', '"', '/', '#']) {
        return Some("it is not an array in [ ]; YAML is not understood");
    }
    if error.is_eof() {
        return Some("the text ends before its last bracket: it may have been cut off");
    }
    let (before, after) = text.split_at(offset(text, error));
    // The parser may stand on the offending character or behind it.
    let at = before.chars().next_back();
    let is = |wanted: &[char]| at.is_some_and(|c| wanted.contains(&c));
    let earlier = before.trim_end_matches([']', '}']).trim_end();
    if is(&[']', '}']) && earlier.ends_with(',') {
        Some("a comma stands before the closing bracket")
    } else if is(&['\'']) || text.starts_with('\'') {
        Some("it has single quotes; JSON needs \" around names and texts")
    } else if is(&['#', '/']) || after.starts_with(['#', '/']) {
        Some("JSON has no comments")
    } else if is(&['"', '{', '[']) {
        Some("a comma or a bracket is missing before this")
    } else if at.is_some_and(char::is_alphabetic) {
        Some("names and texts need \" around them")
    } else {
        None
    }
}

/// The byte after the character at which the parser gave up.
fn offset(text: &str, error: &serde_json::Error) -> usize {
    let line: usize = text.split_inclusive('\n').take(error.line() - 1).map(str::len).sum();
    let mut offset = (line + error.column()).min(text.len());
    while !text.is_char_boundary(offset) {
        offset += 1;
    }
    offset
}

fn is_path(text: &str) -> bool {
    let is_short = text.len() < 300 && !text.contains(['\n', '{', '[']);
    is_short && (text.starts_with(['/', '.', '~']) || text.ends_with(".json"))
}

/// The cause of a text that is not the private key of a GitHub App.
pub(super) fn not_a_key(text: &str) -> &'static str {
    let is_a = |kind: &str| text.contains(&format!("-----BEGIN {kind}-----"));
    if text.contains("ENCRYPTED") {
        "is encrypted with a passphrase: use the file as the App's page on GitHub generates it, or decrypt it with `openssl rsa`"
    } else if is_a("OPENSSH PRIVATE KEY") {
        "is an OpenSSH key: use the key that the App's page on GitHub generates, an RSA key in PEM format"
    } else if is_a("EC PRIVATE KEY") || is_a("EC PARAMETERS") {
        "is an elliptic-curve key: a GitHub App has an RSA key, which its page on GitHub generates"
    } else if is_a("PUBLIC KEY") || is_a("RSA PUBLIC KEY") || is_a("CERTIFICATE") {
        "is a public key: use the private key that the App's page on GitHub generates"
    } else if text.starts_with(['/', '.', '~']) || text.ends_with(".pem") {
        "looks like a path: put the file's text here, or set GITHUB_APP_PRIVATE_KEY_FILE"
    } else {
        "is not an RSA private key in PEM format: use the file that the App's page on GitHub generates"
    }
}

/// The known name that `name` is probably meant to be.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let likeness = |known: &str| {
        let has = |word: &str| known.split('_').any(|k| k.starts_with(word) || word.starts_with(k));
        let has_all_words = name.split('_').all(|word| word.len() > 1 && has(word));
        if has_all_words { 1.0 } else { strsim::jaro_winkler(&name, known) }
    };
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.8).then_some(*best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn names(text: &str, cause: &str) {
        let error = serde_json::from_str::<serde_json::Value>(text).unwrap_err();
        let problem = not_json(text, &error);
        assert!(problem.contains(cause), "{problem}");
    }

    #[test]
    fn the_cause_of_bad_json_is_named() {
        names(r#"[{"repo": "acme/app",}]"#, "a comma stands before");
        names("[{\"labels\": [\"a\",\n ]}]", "a comma stands before");
        names(r#"[{"repo": "acme/app"},]"#, "a comma stands before");
        names("[{'repo': 'acme/app'}]", "single quotes");
        names("'[{\"repo\": \"acme/app\"}]'", "single quotes");
        names("[{\u{201c}repo\u{201d}: 1}]", "typographic quotes");
        names("[{\"repo\": 1} // the first\n]", "no comments");
        names("# VMs\n[]", "no comments");
        names("- repo: acme/app\n  labels: [self-hosted]", "YAML");
        names("repo: acme/app", "YAML");
        names("/secrets/config.json", "RUNNER_CONFIG_FILE");
        names("config.json", "RUNNER_CONFIG_FILE");
        names(r#"[{"repo": "acme/app""#, "cut off");
        names(r#"[{"repo": "acme/app" "labels": []}]"#, "is missing before this");
        names(r#"[{repo: "acme/app"}]"#, "need \" around them");
        names("[{\"\u{e9}\u{e9}\u{e9}\" \u{e9}}]", "column");
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["repo", "labels", "vm_instance_name", "vm_instance_zone", "runner_names"];
        for (name, expected) in [
            ("repository", Some("repo")),
            ("label", Some("labels")),
            ("vm_name", Some("vm_instance_name")),
            ("vm-instance-zone", Some("vm_instance_zone")),
            ("zone", Some("vm_instance_zone")),
            ("runner_name", Some("runner_names")),
            ("xyz", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
    }
}
