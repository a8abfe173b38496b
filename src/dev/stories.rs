//! The stories of the demo. Each causes events, waits until the VM is stopped, and checks a promise.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt;

use super::Stage;
use crate::clock::Timestamp;
use crate::emulators::compute::Status;
use crate::emulators::github::{JobId, JobStatus};
use crate::routes;

/// The VM of most stories.
const VM: &str = "runner-1";

/// The VMs of the pool.
const POOL: [&str; 2] = ["pool-1", "pool-2"];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The description of a broken promise.
type Broken = String;

/// Runs all stories. Returns false if a promise was broken.
pub(super) async fn run_all(stage: &Stage) -> bool {
    let mut kept = true;
    let mut number = 0;
    let begun = stage.clock.now();
    macro_rules! story {
        ($title:literal, $about:literal, $promise:literal, $run:ident) => {
            number += 1;
            stage.narrator.title(number, $title, $about);
            let story = Story { stage, begun: stage.clock.now() };
            let result = match story.$run().await {
                Ok(()) => story.end().await,
                broken => broken,
            };
            kept &= result.is_ok();
            stage.narrator.verdict(result.as_ref().map(|()| $promise).map_err(String::as_str));
        };
    }
    story!(
        "One job",
        "A job is queued. Its VM starts, runs it, stays up idle for VM_INACTIVE_MINUTES, and is stopped.",
        "the job got its runner, and the idle VM was stopped",
        one_job
    );
    story!(
        "Two jobs in a row",
        "The second job ends shortly before the pass that the first job scheduled.",
        "the last job counts: the earlier pass was superseded",
        two_jobs_in_a_row
    );
    story!(
        "Two repositories on one VM",
        "A short job of one, and a long job of the other that still runs when the first job's pass is due.",
        "the running job was not killed",
        two_repositories
    );
    story!(
        "A job is queued while the VM is stopping",
        "The VM cannot be started yet. A pass starts it as soon as it is stopped.",
        "the job was not stranded",
        a_job_while_stopping
    );
    story!(
        "GitHub is down when the VM could be stopped",
        "The service cannot see if a job needs the VM, so it does not stop it.",
        "the VM was not stopped during the outage, and not left running after it",
        github_is_down
    );
    story!(
        "A lost webhook",
        "The webhook that says the job is completed never arrives. The pass created at the start stops the VM.",
        "the VM was not left running",
        a_lost_completion
    );
    story!(
        "A job whose webhook is lost",
        "The webhook that says the job is queued never arrives. The resync, which a scheduler calls, finds the job.",
        "the job got its runner",
        a_lost_job
    );
    story!(
        "A burst on a pool of two",
        "Two jobs at once: each gets a VM of its own. A third waits for the first that is free.",
        "as many VMs were up as jobs waited, and both were stopped",
        a_burst_on_a_pool
    );
    story!(
        "A job in the second before a stop",
        "GitHub gives the runner a job after the pass has read all lists. With drain, the pass removes the runner \
         before the stop: GitHub refuses, or the job shows.",
        "the job was not cut short",
        a_job_before_the_stop
    );
    let now = stage.clock.now();
    stage.narrator.closing(VM, time_up(&stage.cloud.compute.history(VM), now), now.since(begun));
    kept
}

/// The time for which the VM was not stopped, so that it was paid for.
fn time_up(history: &[(Timestamp, Status, String)], now: Timestamp) -> Duration {
    let ends = history.iter().skip(1).map(|(at, ..)| *at).chain([now]);
    let spans = history.iter().zip(ends);
    spans
        .filter(|((_, status, _), _)| *status != Status::Terminated)
        .map(|((begin, ..), end)| end.since(*begin))
        .sum()
}

struct Story<'a> {
    stage: &'a Stage,
    begun: Timestamp,
}

impl Story<'_> {
    async fn one_job(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(2));
        self.completed(job).await
    }

    async fn two_jobs_in_a_row(&self) -> Result<(), Broken> {
        let first = self.queue("acme/app", minutes(1));
        self.completed(first).await?;
        self.stage.clock.sleep(seconds(30)).await;
        let second = self.queue("acme/app", seconds(10));
        self.completed(second).await?;
        let over = self.stage.clock.now();
        self.until("the VM is stopping", minutes(10), || self.status() == Status::Stopping).await?;
        let idle = self.stage.clock.now().since(over);
        if idle < seconds(55) { Err(format!("stopped after {} s", idle.as_secs())) } else { Ok(()) }
    }

    async fn two_repositories(&self) -> Result<(), Broken> {
        let short = self.queue("acme/app", minutes(1));
        self.completed(short).await?;
        let long = self.queue("acme/web", minutes(5));
        self.completed(long).await
    }

    async fn a_job_while_stopping(&self) -> Result<(), Broken> {
        let first = self.queue("acme/app", minutes(1));
        self.completed(first).await?;
        self.stage.narrator.aside("an operator stops the VM in the console");
        self.stage.cloud.compute.stop_by_hand(VM);
        self.until("the VM is stopping", minutes(1), || self.status() == Status::Stopping).await?;
        let job = self.queue("acme/app", minutes(1));
        self.completed(job).await
    }

    async fn github_is_down(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(1));
        self.completed(job).await?;
        self.stage.narrator.aside("GitHub's API starts to answer 503");
        self.stage.cloud.github.outage(true);
        self.stage.clock.sleep(minutes(5)).await;
        let status = self.status();
        self.stage.narrator.aside("GitHub's API works again");
        self.stage.cloud.github.outage(false);
        if status == Status::Running {
            Ok(())
        } else {
            Err(format!("the VM was {status} while GitHub was down"))
        }
    }

    async fn a_lost_completion(&self) -> Result<(), Broken> {
        let job = self.queue("acme/app", minutes(1));
        self.until("the job runs", minutes(5), || self.job_is(job, JobStatus::InProgress)).await?;
        self.stage.clock.sleep(seconds(20)).await;
        self.stage.narrator.aside("the next webhook will be lost");
        self.stage.cloud.github.lose_next_webhook(1);
        self.completed(job).await
    }

    async fn a_lost_job(&self) -> Result<(), Broken> {
        self.stage.narrator.aside("the next webhook will be lost");
        self.stage.cloud.github.lose_next_webhook(1);
        let job = self.queue("acme/app", minutes(1));
        self.stage.clock.sleep(minutes(2)).await;
        self.stage.narrator.aside("the scheduler calls the resync: POST /runner/reconcile");
        let request = Request::post("/runner/reconcile").header("X-Runner-Secret", super::SECRET);
        let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
        let Ok(response) = routes::router(self.stage.app.clone()).oneshot(request).await;
        if !response.status().is_success() {
            return Err(format!("the resync was answered {}", response.status()));
        }
        self.completed(job).await
    }

    async fn a_burst_on_a_pool(&self) -> Result<(), Broken> {
        let jobs = [minutes(3), minutes(3), minutes(1)].map(|runs| self.queue_for_the_pool(runs));
        self.until("both VMs are up", minutes(4), || {
            POOL.iter().all(|vm| self.stage.cloud.compute.status(vm) == Status::Running)
        })
        .await?;
        for job in jobs {
            self.completed(job).await?;
        }
        Ok(())
    }

    async fn a_job_before_the_stop(&self) -> Result<(), Broken> {
        let cloud = &self.stage.cloud;
        let first = self.queue_for_the_pool(minutes(1));
        self.completed(first).await?;
        // The job comes just when the service asks GitHub to remove the runner, and its webhook is lost.
        let (github, second) = (cloud.github.clone(), Arc::new(OnceLock::new()));
        let queued = Arc::clone(&second);
        cloud.faults.on(move |call| {
            if call.method == "actions.deleteSelfHostedRunnerFromRepo" && queued.get().is_none() {
                github.lose_next_webhook(1);
                queued.get_or_init(|| github.queue_job("acme/web", ["pool"], minutes(2)));
            }
            None
        });
        self.until("the VM is to be stopped", minutes(15), || second.get().is_some()).await?;
        cloud.faults.off();
        self.stage.narrator.aside("the job came just before its runner was removed");
        let job = *second.get().ok_or("no job was queued")?;
        self.completed(job).await?;
        if cloud.github.job(job).lost > 0 { Err("the job lost its runner".into()) } else { Ok(()) }
    }

    /// Waits until the VMs are stopped and the queue is empty, then checks that no stop killed a job.
    async fn end(&self) -> Result<(), Broken> {
        let cloud = &self.stage.cloud;
        let is_down = |vm: &str| cloud.compute.status(vm) == Status::Terminated;
        self.until("the VMs are stopped", minutes(30), || {
            is_down(VM) && POOL.into_iter().all(is_down)
        })
        .await?;
        self.until("the queue is empty", minutes(30), || cloud.tasks.pending().is_empty()).await?;
        [VM].into_iter().chain(POOL).try_for_each(|vm| self.killed_no_job(vm))
    }

    fn killed_no_job(&self, vm: &str) -> Result<(), Broken> {
        let cloud = &self.stage.cloud;
        for (at, status, cause) in cloud.compute.history(vm) {
            let killed = cloud.github.jobs().into_iter().find(|job| {
                let ran = job.started_at.is_some_and(|start| start <= at)
                    && job.completed_at.is_none_or(|end| at < end);
                ran && job.runner_name.as_deref() == Some(vm) && status == Status::Stopping
            });
            if let Some(job) = killed.filter(|_| at >= self.begun) {
                return Err(format!("{vm} was stopped while job {} ran ({cause})", job.id));
            }
        }
        Ok(())
    }

    fn queue_for_the_pool(&self, runs: Duration) -> JobId {
        self.stage.cloud.github.queue_job("acme/web", ["pool"], runs)
    }

    fn queue(&self, repo: &str, runs: Duration) -> JobId {
        self.stage.cloud.github.queue_job(repo, ["self-hosted"], runs)
    }

    fn status(&self) -> Status {
        self.stage.cloud.compute.status(VM)
    }

    fn job_is(&self, job: JobId, status: JobStatus) -> bool {
        self.stage.cloud.github.job(job).status == status
    }

    async fn completed(&self, job: JobId) -> Result<(), Broken> {
        let condition = format!("job {job} is completed");
        self.until(&condition, minutes(30), || self.job_is(job, JobStatus::Completed)).await
    }

    async fn until(
        &self,
        condition: &str,
        limit: Duration,
        holds: impl Fn() -> bool,
    ) -> Result<(), Broken> {
        let end = self.stage.clock.now() + limit;
        while !holds() {
            if self.stage.clock.now() > end {
                return Err(format!(
                    "after {} minutes the condition was not reached: {condition}",
                    limit.as_secs() / 60
                ));
            }
            self.stage.clock.sleep(seconds(1)).await;
        }
        Ok(())
    }
}
