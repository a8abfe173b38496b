//! Every combination of abstract facts. The proof that a simulation cannot give: no situation is left out.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Older,
    Equal,
    Newer,
}

fn evidences() -> Vec<(Option<Evidence>, Option<JobState>)> {
    let job = |state| (Some(Evidence::Job(a_job(7))), Some(state));
    vec![
        (None, None),
        (Some(Evidence::Operator(ago(5))), None),
        (Some(Evidence::Operator(ago(25 * 60))), None),
        job(JobState::Queued(labels("gpu"))),
        job(JobState::Queued(labels("gpu arm64"))),
        job(JobState::Pending),
        job(JobState::Running(RunsOn::Here)),
        job(JobState::Running(RunsOn::HereIfUnregistered)),
        job(JobState::Running(RunsOn::Elsewhere(None))),
        job(JobState::Running(RunsOn::Elsewhere(Some(other_vm())))),
        job(JobState::ForAnother(other_vm())),
        job(JobState::Completed(Some(ago(3)))),
        job(JobState::Completed(None)),
        job(JobState::Gone("")),
        job(JobState::Unavailable("503".into())),
        job(JobState::Forbidden("403".into())),
    ]
}

fn runners() -> Vec<RunnerState> {
    vec![
        registered(),
        RunnerState::Idle(Vec::new()),
        runner_busy(),
        RunnerState::Unavailable("503".into()),
        RunnerState::Forbidden("403".into()),
        RunnerState::IdleElsewhere {
            runners: vec![labels("self-hosted linux x64 gpu")],
            because: "403".into(),
        },
    ]
}

fn demands() -> Vec<Demand> {
    let coverages =
        [Coverage::Complete, partial(false), partial(true), Coverage::Forbidden("403".into())];
    let mut all = Vec::new();
    for coverage in coverages {
        let nothing = with_coverage(coverage);
        all.push(Demand { running: Some(a_job(9)), ..nothing.clone() });
        all.push(Demand { queued: vec![a_job(9)], ..nothing.clone() });
        let unfit = JobRef { labels: labels("gpu arm64"), ..a_job(9) };
        all.push(Demand { queued: vec![unfit], ..nothing.clone() });
        all.push(Demand { pending: Some(a_job(9)), ..nothing.clone() });
        all.push(Demand { elsewhere: [(other_vm(), a_job(8))].into(), ..nothing.clone() });
        all.push(nothing);
    }
    all
}

const STATUSES: [&str; 5] = ["RUNNING", "TERMINATED", "SUSPENDED", "STOPPING", "STAGING"];

const ASKERS: [Asker; 4] = [Asker::Task, Asker::Operator, Asker::Force, Asker::Observer];

/// The memory of earlier passes: nothing, that this one confirms, that the VM was at work, that a scan goes on.
fn memories() -> Vec<fn(&mut Task)> {
    fn confirming(task: &mut Task) {
        task.refused = vec![Source::Job, Source::Runner, Source::Jobs];
        task.confirming_at = Some(at(NOW - 60));
    }
    fn refused(task: &mut Task) {
        task.refused = vec![Source::Job, Source::Runner, Source::Jobs];
    }
    fn blind_for_a_day(task: &mut Task) {
        refused(task);
        task.forbidden_since = Some(ago(24 * 60));
    }
    fn at_work(task: &mut Task) {
        task.busy_at = Some(ago(5));
    }
    fn scanning(task: &mut Task) {
        let Coverage::Partial { resume, .. } = partial(true) else { return };
        task.cursor = resume;
    }
    fn pending(task: &mut Task) {
        task.pending_since = Some(ago(30));
    }
    vec![|_| {}, confirming, refused, blind_for_a_day, at_work, scanning, pending]
}

fn visit(mut check: impl FnMut(&Case, &[Question], &Decision)) -> u64 {
    let (evidences, runners, demands, memories) = (evidences(), runners(), demands(), memories());
    let mut count = 0;
    for asker in ASKERS {
        for status in STATUSES {
            for age in [Age::Older, Age::Equal, Age::Newer] {
                for (is_recent, held, ssd, given_up) in
                    (0..16).map(|bits| (bits & 1 == 1, bits & 2 == 2, bits & 4 == 4, bits & 8 == 8))
                {
                    for memory in &memories {
                        for (evidence, job) in &evidences {
                            // An observer and an operator have no task.
                            if asker != Asker::Task && evidence.is_some() {
                                continue;
                            }
                            for runner in &runners {
                                for demand in &demands {
                                    let own = if is_recent { ago(2) } else { ago(60) };
                                    let mut case = idle();
                                    case.asker = asker;
                                    case.status = status;
                                    case.task.idle_since = Some(IdleSince::of_event(own));
                                    case.label = Some(match age {
                                        Age::Older => own - MINUTE,
                                        Age::Equal => own,
                                        Age::Newer => own + MINUTE,
                                    });
                                    (case.held, case.local_ssd) = (held, ssd);
                                    case.given_up = if given_up { vec![7, 9] } else { Vec::new() };
                                    memory(&mut case.task);
                                    match evidence {
                                        Some(Evidence::Job(job)) => {
                                            case.task.job = Some(job.clone())
                                        }
                                        Some(Evidence::Operator(at)) => {
                                            case.task.operator = Some(*at)
                                        }
                                        None => {}
                                    }
                                    case.job.clone_from(job);
                                    (case.runner, case.demand) = (runner.clone(), demand.clone());
                                    // Asks each question once at most, and comes to an end.
                                    let (asked, decision) = case.play();
                                    check(&case, &asked, &decision);
                                    count += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    count
}

fn is_superseded(case: &Case) -> bool {
    let own = case.task.idle_since.map(IdleSince::time);
    case.asker == Asker::Task && case.label > own
}

fn is_up(case: &Case) -> bool {
    case.status == "RUNNING"
}

fn is_down(case: &Case) -> bool {
    matches!(case.status, "TERMINATED" | "SUSPENDED")
}

/// A stop is decided only if both sources agree, or by the rules for a missing permission.
fn may_stop(case: &Case) -> Result<(), &'static str> {
    let task = &case.task;
    if case.asker == Asker::Force {
        return if is_up(case) || case.status == "STAGING" { Ok(()) } else { Err("not up") };
    }
    if !is_up(case) {
        return Err("not up");
    }
    let refused = |source| case.asker != Asker::Task || task.refused.contains(&source);
    let runner_says_idle = matches!(&case.runner, RunnerState::Idle(known) if !known.is_empty());
    let runner_known =
        matches!(case.runner, RunnerState::Idle(_) | RunnerState::IdleElsewhere { .. });
    let jobs_read = case.demand.coverage == Coverage::Complete;
    let runner_forbidden =
        matches!(case.runner, RunnerState::Forbidden(_)) && refused(Source::Runner);
    let jobs_forbidden =
        matches!(case.demand.coverage, Coverage::Forbidden(_)) && refused(Source::Jobs);
    let confirmed = case.asker != Asker::Task || task.confirming_at.is_some();
    let for_a_day = case.asker == Asker::Task
        && task.forbidden_since.is_some_and(|since| at(NOW).since(since) >= DAY);
    let agree = runner_known && jobs_read;
    let jobs_alone = runner_forbidden && jobs_read && confirmed;
    let runner_alone = runner_says_idle && jobs_forbidden && confirmed;
    let neither = jobs_forbidden
        && (runner_forbidden
            || matches!(&case.runner, RunnerState::IdleElsewhere { .. })
            || matches!(&case.runner, RunnerState::Idle(known) if known.is_empty()))
        && for_a_day;
    if !(agree || jobs_alone || runner_alone || neither) {
        return Err("the sources do not say so");
    }
    if case.demand.running.is_some() {
        return Err("a job runs there");
    }
    let counts = |job: &JobRef| case.runner.fits(&job.labels) && !case.given_up.contains(&job.id);
    if case.demand.queued.iter().any(counts) {
        return Err("a job is queued for it");
    }
    match &case.job {
        Some(JobState::Queued(labels))
            if counts(&JobRef { labels: labels.clone(), ..a_job(7) }) =>
        {
            return Err("the job in evidence is queued for it");
        }
        Some(JobState::Running(RunsOn::Here)) => return Err("the job in evidence runs there"),
        Some(JobState::Unavailable(_)) => return Err("the job in evidence is not known"),
        Some(JobState::Forbidden(_)) if !task.refused.contains(&Source::Job) => {
            return Err("the job in evidence is not known");
        }
        Some(JobState::Completed(Some(_))) => {
            return Err("the job in evidence ended a moment ago");
        }
        _ => {}
    }
    if case.asker != Asker::Operator {
        if case.held {
            return Err("it is held");
        }
        if case.label.max(task.idle_since.map(IdleSince::time)) > Some(at(NOW) - INACTIVE) {
            return Err("it was needed not long ago");
        }
    }
    if case.asker == Asker::Task {
        if is_superseded(case) && case.job.is_none() {
            return Err("it is superseded");
        }
        if task.busy_at.is_some() && task.idle_at.is_none() {
            return Err("it was at work a moment ago");
        }
        if task.cursor.is_some() && !confirmed {
            return Err("it was scanned in several passes");
        }
    }
    Ok(())
}

/// A pass of a task ends only where nothing can be waiting, or another pass is pending.
fn may_end(case: &Case) -> Result<(), &'static str> {
    if case.asker != Asker::Task {
        return Ok(());
    }
    let task = &case.task;
    if is_superseded(case) {
        let given_up = case.given_up.contains(&7);
        return match (&task.evidence(), &case.job) {
            (Some(Evidence::Job(_)), Some(JobState::Queued(_))) if !given_up => {
                // Superseded with a job that waits: it goes on, and may end by the other rules.
                ended_down(case)
            }
            (Some(Evidence::Job(_)), Some(JobState::Pending)) => ended_down(case),
            (Some(Evidence::Job(_)), Some(JobState::Unavailable(_))) => Err("it is not known"),
            (Some(Evidence::Job(_)), Some(JobState::Forbidden(_)))
                if !task.refused.contains(&Source::Job) =>
            {
                Err("it is not known")
            }
            _ => Ok(()),
        };
    }
    ended_down(case)
}

fn ended_down(case: &Case) -> Result<(), &'static str> {
    if !is_down(case) {
        return Err("it is not down");
    }
    let refused = |source| case.task.refused.contains(&source);
    match &case.runner {
        RunnerState::Unavailable(_) => return Err("its runner could not be queried"),
        RunnerState::Forbidden(_) if !refused(Source::Runner) => {
            return Err("refused only once");
        }
        _ => {}
    }
    match &case.demand.coverage {
        Coverage::Partial { .. } => return Err("not every list was read"),
        Coverage::Forbidden(_) if !refused(Source::Jobs) => return Err("refused only once"),
        _ => {}
    }
    let counts = |job: &JobRef| case.runner.fits(&job.labels) && !case.given_up.contains(&job.id);
    if case.demand.running.is_some() || case.demand.pending.is_some() {
        return Err("a job runs or is pending");
    }
    if case.demand.queued.iter().any(counts) {
        return Err("a job is queued");
    }
    match &case.job {
        Some(JobState::Queued(labels))
            if counts(&JobRef { labels: labels.clone(), ..a_job(7) }) =>
        {
            Err("the job in evidence is queued")
        }
        Some(JobState::Pending) => Err("the job in evidence is pending"),
        Some(JobState::Unavailable(_) | JobState::Forbidden(_)) => {
            Err("the job in evidence is not known")
        }
        _ if case.task.operator.is_some_and(|since| at(NOW).since(since) < DAY) => {
            Err("an operator asked for it")
        }
        _ => Ok(()),
    }
}

/// A VM of a pool, its claim and its peers in every state.
#[test]
fn every_combination_of_a_pool_leaves_no_job_alone() {
    let peers = [TAKEN, free(), CAN_START, coming_for_7()];
    let claims = [None, Some((30, 7)), Some((90, 7)), Some((30, 8)), Some((400, 8))];
    let (mut count, mut hands) = (0_u64, 0_u64);
    for (first, third) in
        peers.iter().flat_map(|a| peers.iter().map(move |b| (a.clone(), b.clone())))
    {
        for claim in claims {
            for status in STATUSES {
                for held in [false, true] {
                    for (evidence, job) in evidences() {
                        for (runner, demand) in runners()
                            .iter()
                            .flat_map(|r| demands().into_iter().map(move |d| (r.clone(), d)))
                        {
                            let mut case = idle().in_a_pool(first.clone(), third.clone());
                            (case.status, case.claim, case.held) = (status, claim, held);
                            match &evidence {
                                Some(Evidence::Job(job)) => case.task.job = Some(job.clone()),
                                Some(Evidence::Operator(at)) => case.task.operator = Some(*at),
                                None => {}
                            }
                            case.job.clone_from(&job);
                            (case.runner, case.demand) = (runner, demand);
                            let (_, decision) = case.play();
                            hands += u64::from(!decision.hand_on.is_empty());
                            count += 1;
                            no_job_is_left_alone(&case, &decision);
                        }
                    }
                }
            }
        }
    }
    #[expect(clippy::print_stdout, reason = "the figures, with --nocapture")]
    {
        println!("{count} combinations of a pool: {hands} with jobs that are handed on");
    }
}

fn no_job_is_left_alone(case: &Case, decision: &Decision) {
    let tell = || {
        format!(
            "{decision:#?}\n{} claim {:?} held {} peers {:?}\n{:?}\n{:?} {:?} {:?}",
            case.status,
            case.claim,
            case.held,
            case.peers,
            case.task,
            case.job,
            case.runner,
            case.demand
        )
    };
    for vm in decision.hand_on.keys() {
        assert_eq!(case.peers[vm].start, CanStart::Yes, "{}", tell());
        assert!(decision.next.is_some(), "no pass looks after the job\n{}", tell());
    }
    if let Some((_, due)) = &decision.next {
        assert!(*due > at(NOW) && *due <= ahead(300), "{}", tell());
    }
    let a_peer = |is: fn(&Availability) -> bool| case.peers.values().any(is);
    let a_peer_is_there = a_peer(|peer| !peer.free.is_empty() || peer.claimed_for.contains(&7));
    // The job in evidence waits for the pool.
    let fits = matches!(&case.job, Some(JobState::Queued(labels)) if case.runner.fits(labels));
    if fits && is_down(case) {
        let up = decision.action == Start || !decision.hand_on.is_empty() || a_peer_is_there;
        assert!(up, "no VM comes up for the job\n{}", tell());
        assert!(decision.next.is_some(), "no pass looks after the job\n{}", tell());
    }
    let busy = matches!(case.runner, RunnerState::Busy { .. });
    if matches!(case.job, Some(JobState::Queued(_))) && is_up(case) && busy {
        let labels_route =
            matches!(&case.job, Some(JobState::Queued(labels)) if labels == &super::labels("gpu"));
        let up = !decision.hand_on.is_empty()
            || a_peer_is_there
            || !a_peer(|peer| peer.start == CanStart::Yes);
        assert!(up || !labels_route, "the job waits for a busy VM\n{}", tell());
    }
    if decision.action == Stop {
        let counts = |job: &&JobRef| case.runner.fits(&job.labels);
        let mut waiting =
            case.demand.queued.iter().filter(counts).map(|job| job.id).collect::<Vec<_>>();
        waiting.extend(fits.then_some(7));
        let free: usize =
            case.peers.values().map(|peer| peer.free.len() + peer.claimed_for.len()).sum();
        assert!(waiting.len() <= free, "stopped although jobs wait\n{}", tell());
        assert!(
            case.demand.running.is_none()
                && !matches!(case.job, Some(JobState::Running(RunsOn::Here))),
            "{}",
            tell()
        );
    }
}

#[test]
fn every_combination_of_facts_keeps_the_rules() {
    let (mut stops, mut ends, mut starts) = (0_u64, 0_u64, 0_u64);
    let count = visit(|case, asked, decision| {
        let tell = |why: &str| {
            format!(
                "{why}\n{decision:#?}\nasked {asked:?}\n{:?} {} label {:?} held {} given up {:?}\n{:?}\n{:?} {:?} {:?}",
                case.asker,
                case.status,
                case.label,
                case.held,
                case.given_up,
                case.task,
                case.job,
                case.runner,
                case.demand
            )
        };
        if decision.action == Stop {
            stops += 1;
            if let Err(why) = may_stop(case) {
                panic!("{}", tell(&format!("stopped, but {why}")));
            }
            assert!(decision.next.is_some(), "{}", tell("no pass looks after the stop"));
        }
        match &decision.next {
            None => {
                ends += 1;
                if let Err(why) = may_end(case) {
                    panic!("{}", tell(&format!("ended, but {why}")));
                }
            }
            Some((_, due)) => {
                assert!(*due > at(NOW), "{}", tell("the next pass is not later"));
                // Within five minutes, but for a stop that had no effect before.
                assert!(*due <= ahead(300), "{}", tell("the next pass is too far away"));
            }
        }
        if decision.action == Start {
            starts += 1;
            assert!(!is_up(case), "{}", tell("started although it is up"));
            let wanted = !case.demand.queued.is_empty()
                || matches!(
                    case.job,
                    Some(JobState::Queued(_) | JobState::Unavailable(_) | JobState::Forbidden(_))
                )
                || case.task.operator.is_some();
            assert!(wanted, "{}", tell("started for nothing"));
        }
        if case.asker == Asker::Force {
            assert!(asked.is_empty(), "{}", tell("force asked"));
        }
        if case.asker == Asker::Observer {
            assert!(
                !asked.contains(&Job) && !asked.contains(&WriteIdleSince),
                "{}",
                tell("an observer has no task")
            );
        }
        // A queued job starts a VM that is down, whatever the other facts are.
        let counts = |labels: &[Label]| case.runner.fits(labels) && !case.given_up.contains(&7);
        if case.asker == Asker::Task
            && is_down(case)
            && matches!(&case.job, Some(JobState::Queued(labels)) if counts(labels))
        {
            assert_eq!(decision.action, Start, "{}", tell("a queued job is left alone"));
        }
    });
    assert!(stops > 0 && ends > 0 && starts > 0);
    #[expect(clippy::print_stdout, reason = "the figures, with --nocapture")]
    {
        println!("{count} combinations: {stops} stops, {starts} starts, {ends} ends");
    }
}
