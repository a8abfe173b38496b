//! Checks that the compiler does not make: dependencies point one way and in no circles, the tests that
//! docs/promises.md names exist, and the image can be built from the files that the Dockerfile copies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Words that must not occur in files below a path.
const FORBIDDEN: [(&str, &[&str]); 14] = [
    ("lifecycle", &["axum", "crate::routes", "crate::emulators", "crate::state"]),
    // The rules of a pass: no I/O and no clock.
    ("lifecycle/decide.rs", &["crate::clients", "async", "await", "tokio", "clock.now", "tracing"]),
    ("clients", &["axum", "crate::lifecycle", "crate::routes", "crate::state", "crate::emulators"]),
    (
        "routes",
        &[
            "crate::clients::transport",
            "crate::clients::compute",
            "crate::clients::cloud_tasks",
            "crate::emulators",
        ],
    ),
    ("fleet.rs", &["crate::"]),
    ("clock.rs", &["crate::"]),
    ("secret.rs", &["crate::", "axum", "http::"]),
    ("identity.rs", &["axum", "http::", "crate::clients", "crate::lifecycle", "crate::routes"]),
    ("config.rs", &["crate::lifecycle", "crate::routes", "crate::clients"]),
    ("config", &["crate::lifecycle", "crate::routes", "crate::clients"]),
    ("check", &["axum", "crate::emulators"]),
    // It makes no calls.
    ("explain.rs", &["axum", "crate::clients", "crate::state", "crate::emulators"]),
    // They must not share the service's mistakes.
    (
        "emulators",
        &[
            "crate::clients",
            "crate::lifecycle",
            "crate::routes",
            "crate::fleet",
            "crate::config",
            "crate::state",
            "crate::secret",
        ],
    ),
    ("state.rs", &["axum", "crate::routes", "crate::emulators"]),
];

fn rust_files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    entries
        .flat_map(|entry| rust_files(&entry.unwrap().path()))
        .filter(|file| file.extension() == Some("rs".as_ref()))
        .collect()
}

#[test]
fn dependencies_point_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut against = Vec::new();
    for (place, forbidden) in FORBIDDEN {
        for file in rust_files(&source.join(place)) {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in
                code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
            {
                if let Some(word) = forbidden.iter().find(|word| line.contains(**word)) {
                    against.push(format!("{}:{}: {word}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(against.is_empty(), "{against:#?}");
}

/// The modules that a file imports, as files: the paths of `use`, with groups taken apart.
fn imports(file: &Path, source: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(file).unwrap();
    let code: String = text
        .split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join(" ");
    let inside = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    let uses = code.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let mut files = BTreeSet::new();
    for path in uses.flat_map(|tree| paths(tree.trim())) {
        let mut parts = path.split("::").peekable();
        let mut at = match parts.next() {
            Some("crate") => source.to_owned(),
            Some("super") => inside.parent().unwrap().to_owned(),
            Some("self") => inside.clone(),
            _ => continue,
        };
        while parts.next_if(|part| *part == "super").is_some() {
            at.pop();
        }
        for part in parts {
            if !at.join(part).is_dir() && !at.join(part).with_extension("rs").is_file() {
                break;
            }
            at.push(part);
        }
        let candidates = [at.with_extension("rs"), at.join("mod.rs"), at.join("lib.rs")];
        files.extend(candidates.into_iter().find(|path| path.is_file()));
    }
    files.remove(file);
    files
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn paths(tree: &str) -> Vec<String> {
    let Some((head, group)) = tree.split_once('{') else { return vec![tree.trim().to_owned()] };
    let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    let named = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    named.flat_map(paths).map(|path| format!("{}{path}", head.trim())).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&source);
    let graph: BTreeMap<_, _> =
        files.iter().map(|file| (file.clone(), imports(file, &source))).collect();
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 200, "imports are not read");
    // Removes modules that import nothing left, until only circles are left. A module may re-export its parts and stand
    // for them, so its own file is no part of a circle through them.
    let is_parent = |of: &Path, file: &Path| {
        file.with_extension("") == of.parent().unwrap() || file == of.with_file_name("mod.rs")
    };
    let mut left = graph.clone();
    loop {
        let names: BTreeSet<PathBuf> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|file, imports| {
            imports.iter().any(|import| names.contains(import) && !is_parent(file, import))
        });
        if left.len() == before {
            break;
        }
    }
    let circles: Vec<_> = left
        .iter()
        .map(|(file, imports)| {
            (file, imports.iter().filter(|i| left.contains_key(*i)).collect::<Vec<_>>())
        })
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn the_tests_that_the_docs_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["src", "tests/it"].into_iter().flat_map(|place| rust_files(&root.join(place)));
    let code: String = files.map(|file| fs::read_to_string(file).unwrap()).collect();
    let docs = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let named: Vec<&str> = docs
        .split('`')
        .filter(|text| text.matches('_').count() >= 3 && !text.contains(['/', ' ', '\n']))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let lost: Vec<&&str> =
        named.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(lost.is_empty(), "{lost:#?}");
}

#[test]
fn the_dockerfile_makes_every_target_that_cargo_wants_to_see() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file| fs::read_to_string(root.join(file)).unwrap();
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let paths: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'))
        .collect();
    assert!(paths.len() >= 4, "{paths:?}");
    let lost: Vec<_> = paths.iter().filter(|path| !dockerfile.contains(*path)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // .dockerignore has to let through the files that the Dockerfile copies from the project.
    let allowed = read(".dockerignore");
    for copied in ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", "src"] {
        assert!(dockerfile.contains(copied) && allowed.contains(&format!("!{copied}\n")));
    }
}
