//! Checks that the documents agree with the code.

use std::fs;
use std::path::Path;

fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// The source code, with continued string literals joined and quotation marks as printed.
fn code() -> String {
    let mut text = String::new();
    sources(Path::new("src"), &mut text);
    let lines = text.split("\\\n").map(str::trim_start);
    lines.collect::<String>().replace("\\\"", "\"")
}

#[test]
fn the_log_lines_to_search_for_are_written_somewhere() {
    let code = code();
    let operations = fs::read_to_string("docs/operations.md").unwrap();
    let rows = operations.lines().filter_map(|line| line.strip_prefix("| "));
    let mut searched = 0;
    for cell in rows.filter_map(|row| row.split(" | ").next()) {
        for phrase in cell.split('`').skip(1).step_by(2) {
            let phrase = phrase.trim_matches('"');
            if phrase.contains("severity") || phrase.contains("jsonPayload") {
                continue;
            }
            for part in phrase.split(['…', '[', ']']) {
                // A call's name is followed by its status, and numbers of entries differ.
                let part = part.trim_matches(|c: char| c == ' ' || c == ':' || c.is_ascii_digit());
                let written = code.contains(part);
                assert!(written, "docs/operations.md: no code writes `{part}` of `{phrase}`");
                searched += 1;
            }
        }
    }
    assert!(searched > 40, "the tables were not read: {searched}");
}
