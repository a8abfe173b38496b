// Calls the embedded cloud with @octokit/rest, as the service does with its own client.
import assert from "node:assert/strict";
import { createAppAuth } from "@octokit/auth-app";
import { Octokit } from "@octokit/rest";

const { env } = process;
const baseUrl = env.GITHUB_API_URL;
const octokit = new Octokit({
  baseUrl,
  authStrategy: createAppAuth,
  auth: {
    appId: env.GITHUB_APP_ID,
    privateKey: env.GITHUB_APP_PRIVATE_KEY,
    installationId: env.GITHUB_APP_INSTALLATION_ID,
  },
  log: { debug() {}, info() {}, warn() {}, error() {} },
});
const acme = { owner: "acme", repo: "app" };

async function expectStatus(status, call) {
  await assert.rejects(call, (error) => {
    console.log(`  ${error.status}: ${error.message.split("\n")[0]}`);
    return error.status === status;
  });
}

async function play(path) {
  const response = await fetch(`${baseUrl}/play/${path}`, { method: "POST" });
  assert.equal(response.status, 200);
}

const { data: runners } = await octokit.actions.listSelfHostedRunnersForRepo({ ...acme, name: "gpu-1", per_page: 100 });
assert.deepEqual(runners.runners.map((runner) => [runner.name, runner.busy, runner.status]), [["gpu-1", false, "offline"]]);
const { data: org } = await octokit.actions.listSelfHostedRunnersForOrg({ org: "acme" });
assert.equal(org.total_count, 0);

await play("job?repo=acme/web&labels=self-hosted,unmatched&seconds=5");
const web = { owner: "acme", repo: "web" };
const runs = await octokit.paginate(octokit.actions.listWorkflowRunsForRepo, {
  ...web,
  status: "queued",
  exclude_pull_requests: true,
  per_page: 100,
});
assert.equal(runs.length, 1);
const { data: jobs } = await octokit.actions.listJobsForWorkflowRun({ ...web, run_id: runs[0].id, filter: "latest" });
assert.deepEqual(jobs.jobs[0].labels, ["self-hosted", "unmatched"]);
const { data: job } = await octokit.actions.getJobForWorkflowRun({ ...web, job_id: jobs.jobs[0].id });
assert.equal(job.status, "queued");
console.log(`  job ${job.id} is ${job.status}`);

await expectStatus(404, octokit.actions.getJobForWorkflowRun({ ...web, job_id: 1 }));
await play("forbid?permission=actions");
await expectStatus(403, octokit.actions.listWorkflowRunsForRepo(web));
await play("permit?permission=actions");
const wrong = new Octokit({ baseUrl, auth: "ghs_wrong", log: octokit.log });
await expectStatus(401, wrong.actions.listSelfHostedRunnersForRepo(acme));

const { data: installation } = await octokit.apps.getInstallation({ installation_id: Number(env.GITHUB_APP_INSTALLATION_ID) });
assert.equal(installation.permissions.actions, "read");

// As the App itself: its webhook and its deliveries.
const app = new Octokit({
  baseUrl,
  authStrategy: createAppAuth,
  auth: { appId: env.GITHUB_APP_ID, privateKey: env.GITHUB_APP_PRIVATE_KEY },
  log: octokit.log,
});
const { data: itself } = await app.apps.getAuthenticated();
assert.deepEqual(itself.events, ["workflow_job"]);
const { data: covering } = await app.apps.getRepoInstallation(acme);
assert.equal(covering.id, installation.id);
const { data: hook } = await app.apps.getWebhookConfigForApp();
assert.equal(hook.url, `${env.CLOUD_RUN_SERVICE_URL}/github/webhook`);
const list = () => app.paginate("GET /app/hook/deliveries", { per_page: 1 });
let deliveries = [];
for (let attempt = 0; deliveries.length < 2; attempt++) {
  assert.ok(attempt < 100, "deliveries of two jobs are listed");
  await new Promise((done) => setTimeout(done, 100));
  deliveries = await list();
}
assert.equal(new Set(deliveries.map((delivery) => delivery.id)).size, deliveries.length);
const [{ id, guid }] = deliveries;
const { status } = await app.apps.redeliverWebhookDelivery({ delivery_id: id });
assert.equal(status, 202);
let again;
for (let attempt = 0; !again; attempt++) {
  assert.ok(attempt < 100, "the delivery is made again");
  await new Promise((done) => setTimeout(done, 100));
  again = (await list()).find((delivery) => delivery.guid === guid && delivery.redelivery);
}
console.log(`  delivery ${guid} was made again: ${again.status}`);
const { data: failed } = await app.apps.listWebhookDeliveries({ status: "failure" });
assert.deepEqual(failed, []);
await expectStatus(404, app.apps.redeliverWebhookDelivery({ delivery_id: 1 }));
await expectStatus(401, wrong.apps.getWebhookConfigForApp());
