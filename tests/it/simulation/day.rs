//! A day: operations and their times, drawn from a seed.
//!
//! Every operation is complete in itself and ends what it began, so a day with fewer operations is still a day. A
//! failure is shrunk that way.

use std::fmt;
use std::time::Duration;

use super::number;
use crate::world::{minutes, seconds};

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.roll()).unwrap_or(0) % of.len()]
    }
}

/// The faults of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// No faults.
    None,
    /// Calls, responses, webhooks and whole instances of the service are lost; callbacks come late and twice.
    Loss,
    /// Google runs out of machines, VMs vanish, GitHub is down for an hour.
    Outage,
    /// A permission is missing all day.
    Permission,
    /// `busy` lags by a minute and flips in the middle of a job; labels show late.
    Stale,
    /// All of it, but for the permission.
    All,
    /// All of it, three in ten webhooks are lost, and a resync comes every five minutes.
    Resyncs,
}

impl Profile {
    pub(crate) const EACH: [Self; 7] = [
        Self::None,
        Self::Loss,
        Self::Outage,
        Self::Permission,
        Self::Stale,
        Self::All,
        Self::Resyncs,
    ];

    pub(crate) fn loses(self) -> bool {
        matches!(self, Self::Loss | Self::All | Self::Resyncs)
    }

    pub(crate) fn breaks_down(self) -> bool {
        matches!(self, Self::Outage | Self::All | Self::Resyncs)
    }

    pub(crate) fn is_stale(self) -> bool {
        matches!(self, Self::Stale | Self::All | Self::Resyncs)
    }
}

/// An action of a user, an operator or another team, or an event in the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A job is queued.
    Job { repo: &'static str, labels: &'static str, runs: Duration },
    /// A run of many jobs is queued.
    Matrix { repo: &'static str, jobs: usize, runs: Duration },
    /// A job is queued, and the webhook says that it waits for a review, which is no longer so.
    StaleWaiting { repo: &'static str, runs: Duration },
    /// A job waits for a review, and is approved after a while.
    Review { repo: &'static str, approved_after: Duration, runs: Duration },
    /// The nth latest job is cancelled, if it is not over.
    Cancel { nth_latest: usize },
    /// An operator starts a VM by hand.
    Start { vm: &'static str },
    /// An operator asks for a stop by hand.
    Stop { vm: &'static str },
    /// An operator holds a VM for a while.
    Hold { vm: &'static str, span: Duration },
    /// Another team writes a label.
    Label { vm: &'static str },
    /// A new revision of the service takes over, and nothing is in flight.
    Deploy,
    /// A revision takes over in which the entries of `runner-1` name another VM; it is taken back after a while.
    Misdeploy { span: Duration },
    /// The service vanishes in the middle of its work.
    Vanish,
    /// The service vanishes at its nth API call from now on; the call has its effect or not.
    Crash { at_call: u32, with_effect: bool },
    /// The next webhooks are lost.
    LoseWebhooks { count: u32 },
    /// The last webhook comes once more.
    Redeliver,
    /// The next callback comes twice.
    DoubleCallback,
    /// The VM is preempted.
    Preempt { vm: &'static str },
    /// An operator stops the VM in the console.
    StopInConsole { vm: &'static str },
    /// An operator suspends the VM in the console.
    SuspendInConsole { vm: &'static str },
    /// The runner of `runner-1` is not registered for a while.
    RunnerGone { span: Duration },
    /// GitHub has removed the runner of `gpu-1`, if that is down: at its next boot it registers by itself.
    Forgotten,
    /// The zone has no machines for a while.
    Stockout { span: Duration },
    /// GitHub's API answers 503 for a while.
    GitHubDown { span: Duration },
    /// GitHub's rate limit is exhausted for a while.
    RateLimit { span: Duration },
    /// All installation tokens are revoked.
    RevokeTokens,
    /// `busy` is false for a while, even if the runner has a job.
    Glitch { vm: &'static str, span: Duration },
    /// GitHub's search index is empty for a while: lists of runs by status show none.
    SearchIndexDown { span: Duration },
    /// GitHub shows a job running on the VM that lost its runner six days ago.
    StuckJob { vm: &'static str },
    /// Installation tokens are refused until they have this age.
    NewTokensRefused { span: Duration, forbidden: bool },
}

/// The registration of the runner of `runner-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunnerIs {
    /// By the VM's name, in each of its repositories.
    NamedAsItsVm,
    /// By the VM's name, in the organization.
    InTheOrganization,
    /// By another name, which the entries tell.
    NamedInTheEntries,
    /// By another name, which no entry gives: only labels lead to its VM.
    NamedOtherwise,
}

impl RunnerIs {
    /// The registration on the day of this seed: mostly as it should be.
    pub(crate) fn draw(seed: u64) -> Self {
        match Dice::new(seed ^ 0x9a3e).between(0, 9) {
            0 | 1 => Self::InTheOrganization,
            2 => Self::NamedInTheEntries,
            3 => Self::NamedOtherwise,
            _ => Self::NamedAsItsVm,
        }
    }
}

/// The operations with their times, from the beginning of the day.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Day {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    /// `VM_INACTIVE_MINUTES`.
    pub(crate) inactive: u64,
    pub(crate) ops: Vec<(Duration, Op)>,
}

impl fmt::Debug for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Day {{ seed: {}, profile: Profile::{:?}, inactive: {}, ops: vec![",
            self.seed, self.profile, self.inactive
        )?;
        self.ops
            .iter()
            .try_for_each(|(at, op)| writeln!(f, "    (seconds({}), Op::{op:?}),", at.as_secs()))?;
        f.write_str("] }")
    }
}

const REPOS: [&str; 2] = ["acme/app", "acme/web"];
const VMS: [&str; 2] = ["runner-1", "gpu-1"];

impl Day {
    /// `gpu-1` is drained before it is stopped.
    pub(crate) fn drains(&self) -> bool {
        Dice::new(self.seed ^ 0xd7a1).chance(50)
    }

    /// The day of this seed: eight hours, in which jobs come in bursts.
    pub(crate) fn draw(seed: u64, profile: Profile) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(7).wrapping_add(profile as u64));
        let mut ops = Vec::new();
        let heaps = dice.between(2, 8);
        for _ in 0..heaps {
            let start = dice.between(0, 8 * 3600);
            for _ in 0..dice.between(1, 6) {
                let at = seconds(start + dice.between(0, 900));
                ops.push((at, work(&mut dice)));
            }
        }
        for _ in 0..dice.between(0, 10) {
            let at = seconds(dice.between(0, 9 * 3600));
            ops.extend(trouble(&mut dice, profile).map(|op| (at, op)));
        }
        // A separate generator, so that the rest of a day does not depend on it.
        let mut dice = Dice::new(seed ^ 0xd0b7);
        if profile.breaks_down() {
            for _ in 0..dice.between(0, 2) {
                ops.push((seconds(dice.between(0, 9 * 3600)), doubt(&mut dice)));
            }
        }
        ops.sort_by_key(|(at, _)| *at);
        Self { seed, profile, inactive: inactive(&mut dice), ops }
    }
}

/// The `VM_INACTIVE_MINUTES` of a day: mostly short, so that a day has many stops.
fn inactive(dice: &mut Dice) -> u64 {
    match number("SIM_INACTIVE", 0) {
        0 => *dice.pick(&[1, 1, 3, 3, 3, 3, 15, 15, 60, 1440]),
        forced => forced,
    }
}

/// A fault that makes GitHub's answers unreliable.
fn doubt(dice: &mut Dice) -> Op {
    let vm = *dice.pick(&VMS);
    match dice.between(0, 2) {
        0 => Op::SearchIndexDown { span: minutes(dice.between(1, 90)) },
        1 => Op::StuckJob { vm },
        _ => Op::NewTokensRefused { span: seconds(dice.between(1, 5)), forbidden: dice.chance(50) },
    }
}

fn work(dice: &mut Dice) -> Op {
    let repo = *dice.pick(&REPOS);
    let runs = seconds(match dice.between(0, 9) {
        0..5 => dice.between(5, 120),
        5..9 => dice.between(120, 1_200),
        _ => dice.between(1_200, 7_200),
    });
    match dice.between(0, 19) {
        0 => Op::Matrix {
            repo,
            jobs: match dice.between(0, 19) {
                0 => 256,
                _ => usize::try_from(dice.between(3, 40)).unwrap_or(3),
            },
            runs: (runs / 20).min(seconds(60)),
        },
        1 => Op::Review { repo, approved_after: minutes(dice.between(0, 40)), runs },
        2 => Op::Cancel { nth_latest: usize::try_from(dice.between(0, 3)).unwrap_or(0) },
        3 => Op::StaleWaiting { repo, runs },
        4..8 => Op::Job { repo: "acme/app", labels: "self-hosted gpu", runs },
        _ => Op::Job { repo, labels: "self-hosted", runs },
    }
}

fn trouble(dice: &mut Dice, profile: Profile) -> Option<Op> {
    let vm = *dice.pick(&VMS);
    let mut of = vec![
        Op::Start { vm },
        Op::Stop { vm },
        Op::Hold { vm, span: minutes(dice.between(1, 90)) },
        Op::Label { vm },
        Op::Deploy,
        Op::Redeliver,
        Op::RevokeTokens,
    ];
    if profile.loses() {
        of.push(Op::LoseWebhooks { count: u32::try_from(dice.between(1, 3)).unwrap_or(1) });
        of.push(Op::DoubleCallback);
        of.push(Op::Vanish);
        for _ in 0..4 {
            let at_call = u32::try_from(dice.between(0, 12)).unwrap_or(0);
            of.push(Op::Crash { at_call, with_effect: dice.chance(50) });
        }
    }
    if profile.breaks_down() {
        of.push(Op::Preempt { vm });
        of.push(Op::StopInConsole { vm });
        of.push(Op::SuspendInConsole { vm });
        of.push(Op::Misdeploy { span: minutes(dice.between(1, 60)) });
        of.push(Op::RunnerGone { span: minutes(dice.between(1, 30)) });
        of.push(Op::Forgotten);
        of.push(Op::Stockout { span: minutes(dice.between(1, 60)) });
        of.push(Op::GitHubDown { span: minutes(dice.between(1, 60)) });
        of.push(Op::RateLimit { span: minutes(dice.between(1, 30)) });
    }
    if profile.is_stale() {
        of.push(Op::Glitch { vm, span: minutes(dice.between(1, 120)) });
    }
    Some(dice.pick(&of).clone())
}
