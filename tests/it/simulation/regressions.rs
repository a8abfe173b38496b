//! Days that once broke a promise, shrunk, each with the cause.

use super::day::{Day, Op, Profile};
use crate::world::seconds;

fn keeps_every_promise(day: &Day) {
    let (story, result) = super::play(day);
    assert!(result.is_ok(), "{result:?}\n{story}");
}

/// A job ran on the runner of a VM to which its labels do not lead. That VM vanished; the job waited again, for a VM
/// that no pass read.
#[test]
fn a_job_that_ran_on_another_vm_is_not_stranded_when_that_one_vanishes() {
    let job = |labels, runs| Op::Job { repo: "acme/app", labels, runs: seconds(runs) };
    keeps_every_promise(&Day {
        seed: 10_268,
        profile: Profile::All,
        inactive: 3,
        ops: vec![
            (seconds(3_817), job("self-hosted gpu", 54)),
            (seconds(3_953), Op::Matrix { repo: "acme/app", jobs: 10, runs: seconds(95) }),
            (seconds(4_317), job("self-hosted", 7_188)),
            (seconds(9_564), Op::StopInConsole { vm: "gpu-1" }),
        ],
    });
}

/// A job was said to wait for a review, and its entry named a VM that does not exist. The VM was not read, so the
/// delivery was accepted, and the task found nothing to start.
#[test]
fn a_delivery_about_a_review_fails_if_its_vm_does_not_exist() {
    keeps_every_promise(&Day {
        seed: 30_326,
        profile: Profile::All,
        inactive: 3,
        ops: vec![
            (seconds(1_529), Op::Misdeploy { span: seconds(3_120) }),
            (seconds(1_550), Op::StaleWaiting { repo: "acme/app", runs: seconds(56) }),
        ],
    });
}

/// The runner had a name that no entry gives, and jobs could not be read. A list without such a runner was taken for an
/// idle one.
#[test]
fn an_unknown_runner_does_not_count_as_idle() {
    keeps_every_promise(&Day {
        seed: 31_000,
        profile: Profile::Permission,
        inactive: 3,
        ops: vec![(
            seconds(29_012),
            Op::Job { repo: "acme/web", labels: "self-hosted", runs: seconds(563) },
        )],
    });
}

/// A job ran for almost an hour and lost its runner, whose name no entry gives. The pass had seen it wait before it ran
/// and again afterwards, took it to have waited all the time in between, and thus to be meant for another runner.
#[test]
fn a_job_that_ran_in_between_has_not_been_waiting_for_an_hour() {
    keeps_every_promise(&Day {
        seed: 40_614,
        profile: Profile::Outage,
        inactive: 3,
        ops: vec![
            (
                seconds(18_348),
                Op::Job { repo: "acme/app", labels: "self-hosted", runs: seconds(5_168) },
            ),
            (seconds(21_732), Op::RunnerGone { span: seconds(780) }),
        ],
    });
}

/// A job ran on the runner of a VM to which its labels do not lead. That VM vanished and came back for a job of its
/// own, which took the runner. A pass of the first job's own VM found it only when that was over.
#[test]
fn a_job_that_ran_on_another_vm_does_not_wait_for_that_one_to_be_free() {
    let job = |labels, runs| Op::Job { repo: "acme/app", labels, runs: seconds(runs) };
    keeps_every_promise(&Day {
        seed: 50_847,
        profile: Profile::Outage,
        inactive: 3,
        ops: vec![
            (seconds(20_139), job("self-hosted", 586)),
            (seconds(20_266), job("self-hosted", 7_099)),
            (seconds(20_465), job("self-hosted gpu", 1_029)),
            (seconds(26_739), Op::StopInConsole { vm: "gpu-1" }),
        ],
    });
}

/// GitHub did not answer in time, so the next pass resumed the scan. In between a job began on a runner with a name of
/// its own, in a list that had been read already.
#[test]
fn a_job_that_begins_between_two_parts_of_a_scan_is_not_killed() {
    let job = |labels, runs| Op::Job { repo: "acme/app", labels, runs: seconds(runs) };
    let web = Op::Job { repo: "acme/web", labels: "self-hosted", runs: seconds(567) };
    keeps_every_promise(&Day {
        seed: 60_189,
        profile: Profile::All,
        inactive: 3,
        ops: vec![
            (seconds(4_811), job("self-hosted", 24)),
            (seconds(5_226), web),
            (seconds(7_143), job("self-hosted gpu", 549)),
            (seconds(7_251), job("self-hosted gpu", 1_150)),
            (seconds(7_376), job("self-hosted gpu", 517)),
            (seconds(7_720), job("self-hosted gpu", 1_125)),
            (seconds(7_828), job("self-hosted gpu", 407)),
            (seconds(7_901), job("self-hosted", 63)),
            (seconds(8_106), job("self-hosted gpu", 3_246)),
            (seconds(8_327), job("self-hosted", 890)),
        ],
    });
}

/// Two jobs of one VM shared a task. The job that it carried was over, and the other ran on the runner of another VM.
/// The pass ended, so when that VM vanished, no pass saw the job wait until that VM's next one.
#[test]
fn a_pass_that_two_jobs_share_ends_with_neither_of_them_alone() {
    let job = |repo, labels, runs| Op::Job { repo, labels, runs: seconds(runs) };
    keeps_every_promise(&Day {
        seed: 70_106,
        profile: Profile::Outage,
        inactive: 3,
        ops: vec![
            (seconds(9_680), job("acme/web", "self-hosted", 260)),
            (seconds(9_754), job("acme/app", "self-hosted gpu", 57)),
            (seconds(10_068), job("acme/app", "self-hosted", 1_115)),
            (seconds(10_638), Op::StopInConsole { vm: "gpu-1" }),
        ],
    });
}

/// A VM vanished under a job, which GitHub still showed running, while another waited for a review. From then on only
/// the job in review was queried.
#[test]
fn a_job_that_lost_its_vm_is_not_forgotten_for_one_in_review() {
    keeps_every_promise(&Day {
        seed: 3_058,
        profile: Profile::Outage,
        inactive: 1,
        ops: vec![
            (
                seconds(1_303),
                Op::Review { repo: "acme/app", approved_after: seconds(1_440), runs: seconds(407) },
            ),
            (
                seconds(1_434),
                Op::Job { repo: "acme/app", labels: "self-hosted", runs: seconds(422) },
            ),
            (seconds(1_889), Op::Preempt { vm: "runner-1" }),
        ],
    });
}

/// A VM was preempted, and the next pass came just when GitHub did not know the new token yet: the pass fetched another one,
/// which GitHub did not know for even longer.
#[test]
fn a_token_that_github_does_not_know_for_seconds_is_not_replaced() {
    keeps_every_promise(&Day {
        seed: 103_351,
        profile: Profile::Outage,
        inactive: 15,
        ops: vec![
            (seconds(1_666), Op::Matrix { repo: "acme/app", jobs: 6, runs: seconds(57) }),
            (
                seconds(1_950),
                Op::Job { repo: "acme/app", labels: "self-hosted gpu", runs: seconds(6_865) },
            ),
            (seconds(4_747), Op::NewTokensRefused { span: seconds(2), forbidden: false }),
            (seconds(8_181), Op::Preempt { vm: "gpu-1" }),
        ],
    });
}

/// A job was queued although its delivery said that it waited for a review, while another one really did: the pass for it
/// had the name of the pass that queried only the other, and was lost.
#[test]
fn a_job_that_is_queued_already_is_not_forgotten_for_one_in_review() {
    keeps_every_promise(&Day {
        seed: 102_458,
        profile: Profile::Stale,
        inactive: 1,
        ops: vec![
            (
                seconds(5_403),
                Op::Review { repo: "acme/web", approved_after: seconds(1_680), runs: seconds(85) },
            ),
            (seconds(5_577), Op::StaleWaiting { repo: "acme/web", runs: seconds(115) }),
        ],
    });
}

/// GitHub's search index was empty when a VM vanished under its jobs: only the list of runs of any status showed that a
/// job waited.
#[test]
fn a_job_that_only_the_newest_runs_show_gets_its_vm() {
    let job = |runs| Op::Job { repo: "acme/app", labels: "self-hosted", runs: seconds(runs) };
    keeps_every_promise(&Day {
        seed: 70,
        profile: Profile::Outage,
        inactive: 3,
        ops: vec![
            (seconds(11_853), job(6_164)),
            (seconds(11_989), job(4_805)),
            (seconds(13_282), job(93)),
            (seconds(16_658), Op::SearchIndexDown { span: seconds(2_760) }),
            (seconds(18_392), Op::Preempt { vm: "runner-1" }),
        ],
    });
}
