//! Redirects of renamed repositories: GitHub answers at the old name with the repository's address by id.
//!
//! Only a path of the same API is followed: the request carries credentials. The new address is used for a while, so that
//! not every call of a pass is made twice.
//! <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api#follow-redirects>

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Uri, header};

use crate::clock::Deadline;

/// The time for which a new address is used: about a pass. Another repository may get the old name.
const KEEP: Duration = Duration::from_secs(30);

/// The addresses that were redirected lately; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Redirects(Arc<Mutex<BTreeMap<String, (String, Deadline)>>>);

impl Redirects {
    /// The address to use for `url`.
    pub(super) fn current(&self, url: &str) -> String {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, until)| !until.remaining().is_zero());
        let moved = known.iter().find_map(|(old, (new, _))| {
            let rest = url.strip_prefix(old.as_str())?;
            (rest.is_empty() || rest.starts_with(['/', '?'])).then(|| format!("{new}{rest}"))
        });
        moved.unwrap_or_else(|| url.to_owned())
    }

    /// The target of a redirect from `url`, if it is on the same origin.
    pub(super) fn follow(&self, url: &str, headers: &HeaderMap) -> Option<String> {
        let target = target(url, headers.get(header::LOCATION)?.to_str().ok()?)?;
        let (old, new) = without_common_end(url, &target);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(old.to_owned(), (new.to_owned(), Deadline::after(KEEP)));
        Some(target)
    }
}

/// The address in `Location`, which may be a path.
fn target(url: &str, location: &str) -> Option<String> {
    let (from, to): (Uri, Uri) = (url.parse().ok()?, location.parse().ok()?);
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{}://{}{location}", from.scheme()?, from.authority()?));
    }
    let same = from.scheme() == to.scheme() && from.authority() == to.authority();
    same.then(|| location.to_owned())
}

/// Both addresses without their queries and the path segments at their end that are the same.
fn without_common_end<'a>(from: &'a str, to: &'a str) -> (&'a str, &'a str) {
    fn path(url: &str) -> &str {
        url.split('?').next().unwrap_or_default()
    }
    let (mut from, mut to) = (path(from), path(to));
    while let (Some((old, one)), Some((new, two))) = (from.rsplit_once('/'), to.rsplit_once('/')) {
        if one != two || old.ends_with('/') || new.ends_with('/') {
            break;
        }
        (from, to) = (old, new);
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "https://api.github.example/repos/acme/app/actions/runs?page=1";

    fn follow(redirects: &Redirects, location: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(header::LOCATION, location.parse().unwrap())]);
        redirects.follow(OLD, &headers)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_address_is_used_for_a_while() {
        let redirects = Redirects::default();
        let new = "https://api.github.example/repositories/7/actions/runs?page=1";
        assert_eq!(follow(&redirects, new).as_deref(), Some(new));
        let current = |path: &str| redirects.current(&format!("https://api.github.example{path}"));
        assert!(current("/repos/acme/app").ends_with("/repositories/7"));
        assert!(
            current("/repos/acme/app/actions/jobs/9").ends_with("/repositories/7/actions/jobs/9")
        );
        assert!(current("/repos/acme/apple/actions").ends_with("/repos/acme/apple/actions"));
        tokio::time::advance(KEEP).await;
        assert_eq!(redirects.current(OLD), OLD);
    }

    #[test]
    fn only_the_same_origin_is_followed() {
        let redirects = Redirects::default();
        let path = follow(&redirects, "/repositories/7/actions/runs").unwrap();
        assert_eq!(path, "https://api.github.example/repositories/7/actions/runs");
        for other in [
            "https://evil.example/repositories/7/actions/runs",
            "http://api.github.example/repositories/7/actions/runs",
            "https://api.github.example:444/repositories/7",
            "//evil.example/repositories/7",
            "repositories/7",
            "",
        ] {
            assert_eq!(follow(&Redirects::default(), other), None, "{other}");
        }
    }
}
