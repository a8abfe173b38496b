//! All combinations of a small world: two jobs, one VM, one pending pass, and at most one fault.
//!
//! The system is that of the days, but choices are enumerated instead of drawn. A play asks for its choices as it goes;
//! the next play repeats all of them but the last that has another answer left.
//!
//! Each API call takes half a second, and jobs come second by second around the pass: so each of their calls falls
//! between any two of the pass's. `SIM_EVERY=1` plays all combinations; a plain `cargo test` draws a few.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::github::JobStatus;
use runner_manager::emulators::{ErrorBody, Fault, compute};

use super::checks::{self, Bounds, Figures};
use super::day::Dice;
use super::number;
use crate::world::{INACTIVE, World, minutes, seconds};

/// The source of a play's choices.
#[derive(Clone)]
struct Choices(Arc<Mutex<Source>>);

enum Source {
    /// All combinations, counted like an odometer: each answer, and the number of answers.
    Every { digits: Vec<(usize, usize)>, at: usize },
    /// Random choices, for this many more plays.
    Drawn { dice: Dice, plays: u64 },
}

impl Choices {
    fn every() -> Self {
        Self(Arc::new(Mutex::new(Source::Every { digits: Vec::new(), at: 0 })))
    }

    fn drawn(seed: u64, plays: u64) -> Self {
        Self(Arc::new(Mutex::new(Source::Drawn { dice: Dice::new(seed), plays })))
    }

    /// One of `of`: the first, until all combinations after it were tried.
    fn pick<T: Copy>(&self, of: &[T]) -> T {
        match &mut *self.0.lock().unwrap() {
            Source::Every { digits, at } => {
                *at += 1;
                if *at > digits.len() {
                    digits.push((0, of.len()));
                }
                of[digits[*at - 1].0]
            }
            Source::Drawn { dice, .. } => *dice.pick(of),
        }
    }

    /// Picks from choices that are made often: at random it is the first most of the time.
    fn pick_rarely<T: Copy>(&self, of: &[T]) -> T {
        if let Source::Drawn { dice, .. } = &mut *self.0.lock().unwrap()
            && !dice.chance(4)
        {
            return of[0];
        }
        self.pick(of)
    }

    /// Goes on to the next play; false after the last.
    fn advance(&self) -> bool {
        match &mut *self.0.lock().unwrap() {
            Source::Every { digits, at } => {
                *at = 0;
                while let Some((digit, of)) = digits.pop() {
                    if digit + 1 < of {
                        digits.push((digit + 1, of));
                        return true;
                    }
                }
                false
            }
            Source::Drawn { plays, .. } => {
                *plays -= 1;
                *plays > 0
            }
        }
    }
}

/// The fault of a play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// One API call, which a choice picks.
    ACall,
    /// The pass is called twice.
    CallbackTwice,
    /// The pass is called late.
    CallbackLate,
    /// The first job's `queued` is sent twice.
    WebhookTwice,
    /// All `completed` are lost.
    NoCompleted,
    /// The VM is preempted half a minute after the pass.
    Preempted,
}

/// The fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Not,
    Refused,
    NotAnswered,
    VanishBefore,
    VanishAfter,
}

/// The times of the jobs, relative to the time at which the pass is due, and how long they run.
#[derive(Clone)]
struct Play {
    first: i64,
    second: i64,
    runs: (u64, u64),
    trouble: Trouble,
    /// The call that broke, once one did.
    broke: Option<(String, Break)>,
}

impl fmt::Debug for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, runs, trouble, broke } = self;
        write!(
            f,
            "jobs at {first:+} s and {second:+} s of the stop check run {runs:?} s; {trouble:?} {broke:?}"
        )
    }
}

/// Each call takes this long: half of it before its effect.
const LATENCY: Duration = Duration::from_millis(500);

async fn play(choices: &Choices, first_from: &[i64], trouble: Trouble) -> (Play, World, usize) {
    let mut world = World::new();
    // A job has run, its VM is idle, and a pass is pending.
    let job = world.queue_job("acme/app", "self-hosted", seconds(20));
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.pass(seconds(2)).await;
    let due = pass_due(&world);

    let first = choices.pick(first_from);
    let second = first + choices.pick(&[3, 130]);
    let runs = choices.pick(&[(5, 200), (200, 5)]);
    let told = Arc::new(Mutex::new(Play { first, second, runs, trouble, broke: None }));
    break_one_call(&world, choices, &told);

    let mut events: Vec<(i64, u64)> = vec![(first, runs.0), (second, runs.1)];
    events.sort_by_key(|(at, _)| *at);
    let at = |offset: i64| {
        let span = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { due - span } else { due + span }
    };
    match trouble {
        Trouble::CallbackTwice => world.cloud.tasks.duplicate_next(),
        Trouble::CallbackLate => {
            world.cloud.tasks.lateness_by(move |task| {
                if task.due == due { seconds(100) } else { Duration::ZERO }
            });
        }
        _ => {}
    }
    let mut most_tasks = 0;
    for (nth, (offset, runs)) in events.into_iter().enumerate() {
        until(&mut world, at(offset)).await;
        world.queue_job("acme/app", "self-hosted", seconds(runs));
        if (trouble, nth) == (Trouble::WebhookTwice, 0)
            && let Some(last) = world.cloud.github.deliveries().last()
        {
            world.cloud.github.redeliver(&last.guid);
        }
        most_tasks = most_tasks.max(world.cloud.tasks.pending().len());
    }
    if trouble == Trouble::Preempted {
        until(&mut world, at(30)).await;
        if world.status("runner-1") == compute::Status::Running {
            world.cloud.compute.preempt("runner-1");
        }
    }
    let end = world.clock.now() + minutes(4 * 60);
    while world.clock.now() < end
        && !(world.is_quiet()
            && world.cloud.github.jobs().iter().all(|job| job.status == JobStatus::Completed))
    {
        if trouble == Trouble::NoCompleted {
            // `queued` is out by now; the rest may be lost.
            world.cloud.github.lose_next_webhook(1_000);
        }
        world.pass(minutes(1)).await;
        most_tasks = most_tasks.max(world.cloud.tasks.pending().len());
    }
    // The hook holds the service, and the service this cloud: together they would outlive the play.
    world.cloud.faults.off();
    let play = told.lock().unwrap().clone();
    (play, world, most_tasks)
}

fn pass_due(world: &World) -> Timestamp {
    let tasks = world.cloud.tasks.pending();
    let stops = tasks.iter().filter(|task| task.path == "/runner/stop");
    stops.map(|task| task.due).min().expect("a completed job has its stop check")
}

async fn until(world: &mut World, time: Timestamp) {
    let span = time.since(world.clock.now());
    world.pass(span).await;
}

/// Gives every call its latency, and makes at most one fail.
fn break_one_call(world: &World, choices: &Choices, told: &Arc<Mutex<Play>>) {
    let (choices, told, service) = (choices.clone(), Arc::clone(told), world.service());
    world.cloud.faults.on(move |call| {
        let mut told = told.lock().unwrap();
        if told.trouble == Trouble::ACall && told.broke.is_none() {
            let how = choices.pick_rarely(&[
                Break::Not,
                Break::Refused,
                Break::NotAnswered,
                Break::VanishBefore,
                Break::VanishAfter,
            ]);
            if how != Break::Not {
                told.broke = Some((call.method.to_owned(), how));
            }
            match how {
                Break::Not => {}
                Break::Refused => {
                    return Some(Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Api));
                }
                Break::NotAnswered => return Some(Fault::Lost),
                Break::VanishBefore | Break::VanishAfter => {
                    service.vanish();
                    return Some(if how == Break::VanishAfter { Fault::Lost } else { Fault::Hang });
                }
            }
        }
        Some(Fault::Delay(LATENCY))
    });
}

fn bounds(play: &Play) -> Bounds {
    let call_broke = play.broke.is_some();
    Bounds {
        // One pass interval, and a VM that is stopping in the meantime.
        waiting: minutes(7),
        idling: INACTIVE + minutes(10),
        inactive: INACTIVE,
        // The call that broke may have written the label.
        labels_hold: !call_broke,
        nothing_fails: !call_broke && play.trouble != Trouble::NoCompleted,
        both_sources: true,
        drains: false,
        resyncs: false,
    }
}

/// Plays all combinations with a first job at these times.
fn every(first: &[i64]) {
    let all = number("SIM_EVERY", 0) == 1;
    let (mut plays, mut worst) = (0_u64, Figures::default());
    let troubles = [
        Trouble::Nothing,
        Trouble::ACall,
        Trouble::CallbackTwice,
        Trouble::CallbackLate,
        Trouble::WebhookTwice,
        Trouble::NoCompleted,
        Trouble::Preempted,
    ];
    for trouble in troubles {
        let choices = if all { Choices::every() } else { Choices::drawn(4711, 12) };
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            let (told, world, most_tasks) = runtime.block_on(play(&choices, first, trouble));
            match checks::check(&world, bounds(&told), &[], most_tasks) {
                Ok(figures) => worst = worst.worst(&figures),
                Err(broken) => panic!("{told:?}: {broken}\n{}", world.story()),
            }
            plays += 1;
            if plays.is_multiple_of(5_000) {
                say(format_args!("first job at {first:?}: {plays} plays so far, {trouble:?}"));
            }
            if !choices.advance() {
                break;
            }
        }
    }
    say(format_args!("first job at {first:?}: {plays} plays: {worst}"));
}

#[expect(clippy::print_stdout, reason = "the figures of all orders, with --nocapture")]
fn say(words: fmt::Arguments<'_>) {
    println!("{words}");
}

#[test]
fn every_order_of_jobs_that_come_before_the_pass() {
    every(&[-45, -12, -8, -6, -4, -3, -2, -1]);
}

#[test]
fn every_order_of_jobs_that_come_during_the_pass() {
    every(&[0, 1, 2, 3, 4, 5, 6, 8, 10, 12]);
}

#[test]
fn every_order_of_jobs_that_come_after_the_pass() {
    every(&[14, 20, 30, 40, 60, 120]);
}
