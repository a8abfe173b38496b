//! The service's labels on a VM: compare-and-set under the fingerprint that was read.
//!
//! A task may arrive late, twice, or after a newer event, and the service keeps no state to tell. So the VM carries the
//! time of its last use as the label `idle_since`, and each task the value that it was created for: an older task is
//! superseded. The value only grows, so that events which overtake one another agree on it.
//! <https://cloud.google.com/compute/docs/reference/rest/v1/instances/setLabels>

use std::time::Duration;

use http::StatusCode;
use tracing::warn;

use super::claim::Claim;
use super::context::Turn;
use super::error::Error;
use super::schedule::IdleSince;
use super::vm::{
    CLAIM_LABEL, GIVEN_UP_LABEL, HOLD_LABEL, Hold, ID_SEPARATOR, IDLE_SINCE_LABEL, VmSnapshot,
};
use crate::clients;
use crate::clock::Timestamp;

/// The value of a hold without an end. Any value that is not a time holds as well.
const HOLD_VALUE: &str = "by-hand";

/// The label keeps the ids of at most this many jobs that were given up on, the latest.
const MAX_GIVEN_UP: usize = 4;

/// A conflict means that another writer changed the labels first. That happens seldom, so a few attempts are enough.
const ATTEMPTS: u32 = 5;

/// The pause before a second conflict is tried again: a label may take a moment to show.
const PAUSE: Duration = Duration::from_millis(500);

/// A change of a VM's labels.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    /// Only if the VM's value is smaller.
    IdleSince(IdleSince),
    /// The VM is there for these jobs of its pool. An event needs it from now on.
    Claim(&'a [Claim], Option<IdleSince>),
    /// A job ended on the VM at this time, so it is free for another. GitHub gives jobs to any runner of a pool, so the oldest
    /// claim ends if none is for this job.
    Completed {
        job: u64,
        end: Timestamp,
        is_pooled: bool,
        idle_since: IdleSince,
    },
    GivenUp(&'a [u64]),
    Hold(Hold),
    Release,
}

impl Change<'_> {
    /// Applies the change; false if the labels are as they should be already.
    fn apply(self, vm: &mut VmSnapshot) -> bool {
        let held = vm.hold;
        let labels = &mut vm.instance.labels;
        match self {
            Self::IdleSince(value) if vm.idle_since >= Some(value) => false,
            Self::IdleSince(value) => {
                labels.insert(IDLE_SINCE_LABEL.to_owned(), value.to_string());
                true
            }
            Self::Claim(claims, idle_since) => {
                let mut changed = false;
                for claim in claims {
                    let is_own =
                        |known: &Claim| known.job == claim.job && !known.should_show(claim.at);
                    if !vm.claims.values().any(is_own) {
                        let key = free_claim_label(vm, *claim);
                        vm.instance.labels.insert(key.clone(), claim.to_string());
                        vm.claims.insert(key, *claim);
                        changed = true;
                    }
                }
                idle_since.is_some_and(|value| Self::IdleSince(value).apply(vm)) || changed
            }
            Self::Completed { job, end, is_pooled, idle_since } => {
                let own = vm.claims.iter().find(|(_, claim)| claim.job == job);
                let is_older = |claim: &Claim| is_pooled && claim.at <= end;
                let older = vm.claims.iter().filter(|(_, claim)| is_older(claim));
                let ended = own.or_else(|| older.min_by_key(|(_, claim)| claim.at));
                let ended = ended.map(|(key, _)| key.clone());
                if let Some(key) = &ended {
                    labels.remove(key);
                }
                Self::IdleSince(idle_since).apply(vm) || ended.is_some()
            }
            Self::GivenUp(jobs) => {
                let mut ids = vm.given_up.clone();
                ids.extend(jobs.iter().filter(|job| !vm.given_up.contains(job)));
                let latest = &ids[ids.len().saturating_sub(MAX_GIVEN_UP)..];
                let text: Vec<String> = latest.iter().map(u64::to_string).collect();
                let value = text.join(&ID_SEPARATOR.to_string());
                labels.insert(GIVEN_UP_LABEL.to_owned(), value.clone()) != Some(value)
            }
            Self::Hold(hold) if held == Some(hold) => false,
            Self::Hold(hold) => {
                let value = match hold {
                    Hold::WithoutEnd => HOLD_VALUE.to_owned(),
                    Hold::Until(end) => end.unix_seconds().to_string(),
                };
                labels.insert(HOLD_LABEL.to_owned(), value);
                true
            }
            Self::Release => labels.remove(HOLD_LABEL).is_some(),
        }
    }
}

/// Writes the change, reading the VM again where another writer came first.
///
/// # Errors
/// Labels may not be set, kept changing, or Compute Engine did not answer.
pub(super) async fn write(
    turn: &Turn<'_>,
    read: &VmSnapshot,
    change: Change<'_>,
) -> Result<Written, Error> {
    let Turn { cx, now, deadline, .. } = *turn;
    let vm = &turn.vm.vm;
    let mut fresh = read.clone();
    let mut attempts = 0;
    loop {
        if let Change::Claim(claims, _) = change
            && is_taken_since(read, &fresh, claims)
        {
            return Ok(Written::TakenByAnother);
        }
        if !change.apply(&mut fresh) {
            return Ok(Written::Done);
        }
        let instance = &fresh.instance;
        let written = cx
            .compute
            .set_labels(vm, &instance.labels, &instance.label_fingerprint, deadline)
            .await;
        attempts += 1;
        match written {
            Ok(()) => {
                cx.label_permission.granted(vm);
                return Ok(Written::Done);
            }
            Err(error) if is_conflict(&error) && attempts < ATTEMPTS => {
                if attempts > 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                fresh = VmSnapshot::new(cx.compute.get(vm, deadline).await?, now);
            }
            Err(error) if error.lacks_permission() => {
                cx.label_permission.refused(vm, &error, now);
                return Err(Error::LabelsForbidden(vm.clone(), error));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The label of the job's earlier claim, or the first whose claim is over.
fn free_claim_label(vm: &VmSnapshot, claim: Claim) -> String {
    let number = |nth: usize| if nth == 1 { String::new() } else { format!("-{nth}") };
    let mut keys = (1..).map(|nth| format!("{CLAIM_LABEL}{}", number(nth)));
    let is_free = |key: &String| {
        // The start for the earlier job has failed.
        let has_failed = |old: &Claim| vm.phase.is_down() && old.should_show(claim.at);
        vm.claims
            .get(key)
            .is_none_or(|old| old.job == claim.job || !old.is_fresh(claim.at) || has_failed(old))
    };
    keys.find(is_free).expect("one of infinitely many labels is not in use")
}

/// Another job claimed the VM after it was read.
fn is_taken_since(read: &VmSnapshot, fresh: &VmSnapshot, claims: &[Claim]) -> bool {
    let is_own = |other: &Claim| claims.iter().any(|claim| claim.job == other.job);
    let is_known = |other: &Claim| read.claims.values().any(|known| known == other);
    fresh.claims.values().any(|other| !is_own(other) && !is_known(other))
}

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The labels are as the change has them.
    Done,
    /// The VM was claimed for another job since it was read.
    TakenByAnother,
}

/// Writes the change if labels can be written. Failure is a warning: without the label an older pass may count, but its
/// sources still decide.
pub(super) async fn try_write(turn: &Turn<'_>, read: &VmSnapshot, change: Change<'_>) -> Written {
    if turn.lacks_labels() {
        return Written::Done;
    }
    match write(turn, read, change).await {
        Ok(written) => written,
        // Already logged, where the refusal is remembered.
        Err(Error::LabelsForbidden(..)) => Written::Done,
        Err(error) => {
            warn!("VM {}: its labels were not changed ({change:?}): {error}", turn.vm.vm);
            Written::Done
        }
    }
}

fn is_conflict(error: &clients::Error) -> bool {
    error.status() == Some(StatusCode::PRECONDITION_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::compute::{Instance, Status};
    use crate::clock::Timestamp;

    fn vm(labels: &[(&str, &str)]) -> VmSnapshot {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let instance = Instance {
            id: "1".into(),
            status: Status::Running,
            labels: labels.collect(),
            label_fingerprint: String::new(),
            last_start: None,
            last_stop: None,
            last_suspend: None,
            has_local_ssd: false,
        };
        VmSnapshot::new(instance, Timestamp::from_unix_seconds(1_800_000_000))
    }

    #[track_caller]
    fn changes(vm: &VmSnapshot, change: Change<'_>, label: &str, expected: Option<Option<&str>>) {
        let mut after = vm.clone();
        let changed = change.apply(&mut after);
        let value = after.instance.labels.get(label).map(String::as_str);
        assert_eq!(changed.then_some(value), expected, "{change:?}");
    }

    #[test]
    fn idle_since_only_grows() {
        let at =
            |seconds| Change::IdleSince(IdleSince::of_event(Timestamp::from_unix_seconds(seconds)));
        let label = IDLE_SINCE_LABEL;
        changes(&vm(&[]), at(60), label, Some(Some("60")));
        changes(&vm(&[(label, "30")]), at(60), label, Some(Some("60")));
        changes(&vm(&[(label, "60")]), at(60), label, None);
        changes(&vm(&[(label, "90")]), at(60), label, None);
        changes(&vm(&[(label, "1900000000")]), at(60), label, Some(Some("60")));
    }

    #[test]
    fn the_last_four_jobs_that_were_given_up_on_stay_known() {
        let label = GIVEN_UP_LABEL;
        changes(&vm(&[]), Change::GivenUp(&[7]), label, Some(Some("7")));
        changes(&vm(&[(label, "7")]), Change::GivenUp(&[7]), label, None);
        changes(&vm(&[(label, "1_2_3")]), Change::GivenUp(&[4, 5]), label, Some(Some("2_3_4_5")));
        let four = vm(&[(label, "48123456789_48123456790_48123456791_48123456792")]);
        assert_eq!(four.given_up.len(), 4);
        assert!(
            four.instance.labels[label].len() <= 63,
            "a label's value has 63 characters at most"
        );
    }

    #[test]
    fn a_hold_has_an_end_or_none() {
        let label = HOLD_LABEL;
        let (hold, end) = (Change::Hold(Hold::WithoutEnd), "1800003600");
        let for_an_hour = Change::Hold(Hold::Until(Timestamp::from_unix_seconds(1_800_003_600)));
        changes(&vm(&[]), hold, label, Some(Some(HOLD_VALUE)));
        changes(&vm(&[(label, "debugging")]), hold, label, None);
        changes(&vm(&[(label, "7")]), hold, label, None);
        changes(&vm(&[]), for_an_hour, label, Some(Some(end)));
        changes(&vm(&[(label, "debugging")]), for_an_hour, label, Some(Some(end)));
        changes(&vm(&[(label, end)]), for_an_hour, label, None);
        changes(&vm(&[(label, end)]), hold, label, Some(Some(HOLD_VALUE)));
        assert!(vm(&[(label, end)]).is_held() && vm(&[(label, "debugging")]).is_held());
        assert!(!vm(&[(label, "1799999999")]).is_held(), "it has expired");
        changes(&vm(&[(label, "debugging")]), Change::Release, label, Some(None));
        changes(&vm(&[]), Change::Release, label, None);
    }
}
