//! What no compiler checks: dependencies point one way, the tests that docs/promises.md names exist, and the image can
//! be built from what the Dockerfile copies.

use std::fs;
use std::path::{Path, PathBuf};

/// Files below the first must not speak of the second.
const FORBIDDEN: [(&str, &[&str]); 13] = [
    ("lifecycle", &["axum", "crate::routes", "crate::emulators"]),
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
    // It asks nobody.
    ("explain.rs", &["axum", "crate::clients", "crate::state", "crate::emulators"]),
    // They would agree with the service's mistakes.
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
    // What is copied from the project is let through to the build.
    let allowed = read(".dockerignore");
    for copied in ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", "src"] {
        assert!(dockerfile.contains(copied) && allowed.contains(&format!("!{copied}\n")));
    }
}
