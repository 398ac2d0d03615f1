'use strict';
// A client of Kontrol, generated from proto/. See tests/clients/README.md.

const { parseArgs } = require('util');
const { Keepalives, Pod, Stream, Unary, say } = require('./keepalive');
const { Slave } = require('./slave');
const { ELSEWHERE, Tier, sleep } = require('./tier');

/** Aborted at SIGTERM. */
function untilSignal() {
  const over = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT']) process.on(name, () => over.abort());
  return over.signal;
}

/** ping, stream, slave: reports a pod until SIGTERM. */
async function report(tier, options, way, attaches) {
  const stopping = untilSignal();
  const keepalives = new Keepalives(tier, new Pod(options), way);
  const slave = attaches ? new Slave(keepalives) : undefined;
  slave?.run(stopping);
  await keepalives.run(stopping);
  await slave?.stop();
  await keepalives.goodbye();
  keepalives.summary();
}

/** Lists the pods, page by page; a page may come from another master than the one before. */
async function pods(tier, options) {
  let count = 0;
  let pages = 0;
  let page_token = '';
  do {
    const page = await tier.call('ensemble', 'ListPods', { page_size: Number(options['page-size']), page_token });
    for (const { key, id, seq } of page.pods) say({ key, id, seq: Number(seq) });
    count += page.pods.length;
    pages += 1;
    page_token = page.next_page_token;
    // A page may have fewer than asked for: only the token tells whether it was the last.
  } while (page_token !== '');
  say({ pods: count, pages });
}

/** Prints what changes, until SIGTERM. Goes on behind the last revision when a master goes away. */
async function watch(tier) {
  const stopping = untilSignal();
  const known = { pods: new Map(), more: false };
  let revision = '0';
  let history = '';
  while (!stopping.aborted) {
    const { master } = tier;
    const call = master.ensemble.Watch({ revision, history });
    const stop = () => call.cancel();
    stopping.addEventListener('abort', stop);
    // There is a sign of life each 5 s: whoever is silent for longer is gone.
    let silence = setTimeout(stop, 12_000);
    try {
      for await (const message of call) {
        silence.refresh();
        tell(message, known);
        // 0 in all but the last piece of a snapshot: cut off before that, it begins anew.
        if (message.revision !== '0') revision = message.revision;
        if (message.history) history = message.history;
      }
    } catch (error) {
      if (!ELSEWHERE.has(error.code)) throw error;
    }
    clearTimeout(silence);
    stopping.removeEventListener('abort', stop);
    if (stopping.aborted) break;
    say({ cut: master.url, revision: Number(revision) });
    tier.leave(master);
    await sleep(100);
  }
}

/** Prints a message. Some may come again after a cut: what `known` shows already is no news. */
function tell(message, known) {
  const kind = message.event;
  if (kind === undefined) return;
  const revision = Number(message.revision);
  const { pod, pods: all, more, reason } = message[kind];
  if (kind === 'snapshot') {
    // The whole truth: its first piece replaces what was known.
    if (!known.more) known.pods.clear();
    known.more = more;
    for (const one of all) known.pods.set(one.key, one.seq);
    say({ event: kind, revision, pods: all.map(({ id }) => id) });
  } else if (kind === 'pod_joined') {
    if (known.pods.get(pod.key) === pod.seq) return;
    known.pods.set(pod.key, pod.seq);
    say({ event: kind, revision, id: pod.id, seq: Number(pod.seq) });
  } else if (kind === 'pod_left') {
    if (known.pods.delete(pod.key)) say({ event: kind, revision, id: pod.id, seq: Number(pod.seq), reason });
  } else {
    say({ event: kind, revision });
  }
}

/** Runs a command on pods; gives the worst exit code. */
async function exec(tier, options) {
  const request = {
    selector: { ids: options.id.split(',') },
    command: { argv: options.argv },
    timeout: { seconds: 30 },
  };
  let accepted = false;
  let worst = 0;
  for (;;) {
    const { master } = tier;
    try {
      // No deadline: a sign of life comes each 5 s. Going away cancels what runs.
      for await (const { event, ...message } of master.actions.Dispatch(request)) {
        if (event === 'accepted') {
          accepted = true;
          say({ accepted: message.accepted.action_id });
        } else if (event === 'output') {
          const { stream, data } = message.output;
          say({ [stream === 'STREAM_STDOUT' ? 'stdout' : 'stderr']: data.toString() });
        } else if (event === 'finished') {
          const { id, outcome, exit_code } = message.finished;
          say({ finished: id, outcome, exit_code });
          worst = Math.max(worst, exit_code < 0 ? 255 : exit_code);
        } else if (event === 'summary') {
          const { targets, succeeded } = message.summary;
          say({ targets, succeeded });
        }
      }
      return worst;
    } catch (error) {
      // Before `accepted` nothing was started. Behind it, GetAction of any master tells the end.
      if (accepted || !ELSEWHERE.has(error.code)) throw error;
      tier.leave(master);
      await sleep(100);
    }
  }
}

async function main() {
  const words = process.argv.slice(2);
  const end = words.includes('--') ? words.indexOf('--') : words.length;
  const names = ['masters', 'ca', 'token-file', 'app', 'id', 'ip', 'role', 'page-size'];
  const { values, positionals: [command] } = parseArgs({
    args: words.slice(0, end),
    options: Object.fromEntries(names.map((name) => [name, { type: 'string' }])),
    allowPositionals: true,
  });
  const options = {
    app: 'web', id: 'node-1', ip: '127.0.0.1', role: 'client', 'page-size': '100', ...values, argv: words.slice(end + 1),
  };
  const tier = new Tier(options.masters.split(','), options.ca, options['token-file']);
  const commands = {
    ping: () => report(tier, options, new Unary(), false),
    stream: () => report(tier, options, new Stream(), false),
    slave: () => report(tier, options, new Stream(), true),
    pods: () => pods(tier, options),
    watch: () => watch(tier),
    exec: () => exec(tier, options),
  };
  return commands[command]();
}

main().then(
  // Connections that are kept alive would keep the program. What was printed into a pipe is written first.
  (code) => process.stdout.write('', () => process.exit(code ?? 0)),
  (error) => {
    process.stderr.write(`error: ${error.details ?? error.stack}\n`);
    process.exit(1);
  },
);
