'use strict';
// A minimal slave: the channel over which masters send commands, beside the keepalives on the same connection.
//
// What holds, as `proto/kontrol/v1/action.proto` asks for it: no action runs twice in this incarnation; what a master has not
// taken is kept and told again on the next channel, until it says `forget`; no more output is on its way than the window allows.

const { spawn } = require('child_process');
const { once } = require('events');
const { milliseconds, say } = require('./keepalive');
const { sleep } = require('./tier');

// Most of each stream that is passed on, whatever the order says; it stays in memory until the end was taken.
const MOST_OUTPUT = 1 << 20;
const PIECE = 16 << 10;
// Most pieces that are sent before a credit: it comes after 8, and no more than 32 may be on their way.
const PIECES = 16;
// How soon a keepalive follows the end of a channel, in milliseconds; doubled while none opens.
const HASTE = 200;
const STREAMS = ['STREAM_STDOUT', 'STREAM_STDERR'];

/** A command, and what there is to tell of it. What is there twice is of standard output and of standard error. */
class Action {
  written = [0, 0];
  started = false;
  cancel = () => {};

  constructor(run) {
    this.id = run.action_id;
    this.window = run.window || 64 << 10;
    this.most = Math.min(Number(run.max_output) || MOST_OUTPUT, MOST_OUTPUT);
    this.output = [Buffer.alloc(0), Buffer.alloc(0)];
    this.resume([0, 0]);
  }

  /** A new channel goes on from here: the rest is told again. */
  resume(taken) {
    this.taken = taken;
    this.sent = [...taken];
    this.pieces = 0;
    this.toldStart = this.toldEnd = false;
  }

  /** The next message, if there is one that may be sent: the start, output as far as the window goes, the end. */
  next() {
    const action_id = this.id;
    if (this.started && !this.toldStart) {
      this.toldStart = true;
      return { started: { action_id } };
    }
    for (const [at, output] of this.output.entries()) {
      const offset = this.sent[at];
      const room = this.window - (this.sent[0] + this.sent[1] - this.taken[0] - this.taken[1]);
      const data = output.subarray(offset, offset + Math.max(0, Math.min(PIECE, room)));
      if (data.length > 0 && this.pieces < PIECES) {
        this.sent[at] += data.length;
        this.pieces += 1;
        return { output: { action_id, stream: STREAMS[at], offset, data } };
      }
    }
    const everything = this.output.every((output, at) => output.length === this.sent[at]);
    if (this.result && everything && !this.toldEnd) {
      this.toldEnd = true;
      return { finished: { action_id, result: this.result } };
    }
    return undefined;
  }

  /** Runs the command to its end; `ring` is called when there is more to tell. */
  async run(run, pod, key, ring) {
    const { argv, shell, env: more, input_json: input } = run.command;
    const [program, ...words] = argv.length > 0 ? argv : ['/bin/sh', '-c', shell];
    const ours = Object.entries(process.env).filter(([name]) => !name.startsWith('KONTROL_') && name !== 'NAMESPACE');
    const env = { ...Object.fromEntries(ours), ...more, KONTROL_ACTION: this.id, KONTROL_KEY: key, KONTROL_ID: pod.id };
    if (input.length > 0 && input.length < (128 << 10) - 16) env.INPUT = input.toString();
    const child = spawn(program, words, { env, detached: true });
    // `error` instead of `spawn` where it can't be started.
    try {
      await once(child, 'spawn');
    } catch (error) {
      this.end('OUTCOME_REFUSED', -1, 0, error.message);
      return ring();
    }
    child.stdin.on('error', () => {}); // It did not want to know.
    child.stdin.end(input.length > 0 ? `${input}\n` : '');
    for (const [at, stream] of [child.stdout, child.stderr].entries()) {
      stream.on('data', (data) => {
        this.written[at] += data.length;
        const room = this.most - this.output[at].length;
        this.output[at] = Buffer.concat([this.output[at], data.subarray(0, room)]);
        ring();
      });
    }
    this.started = true;
    ring();

    const ended = once(child, 'close');
    const over = new AbortController();
    const limit = milliseconds(run.timeout) || 60_000;
    const why = await Promise.race([
      ended.then(() => ['OUTCOME_EXITED', '']),
      new Promise((resolve) => { this.cancel = () => resolve(['OUTCOME_CANCELLED', 'it was cancelled']); }),
      sleep(limit, ['OUTCOME_TIMED_OUT', `it took longer than ${limit} ms`], { signal: over.signal }),
    ]);
    // The group: whatever else it started ends with it.
    const kill = (signal) => { try { process.kill(-child.pid, signal); } catch { /* It is gone. */ } };
    if (why[0] !== 'OUTCOME_EXITED') {
      kill('SIGTERM');
      await Promise.race([ended, sleep(2000, null, { signal: over.signal })]);
    }
    kill('SIGKILL');
    const [code, signal] = await ended;
    over.abort();
    const number = signal ? require('os').constants.signals[signal] : 0;
    this.end(why[0], signal ? 128 + number : code, number, why[1]);
    return ring();
  }

  end(outcome, exit_code = -1, signal = 0, error = '') {
    const [stdout_bytes, stderr_bytes] = this.written;
    const truncated = Math.max(...this.written) > this.most;
    this.result = { outcome, exit_code, signal, error, stdout_bytes, stderr_bytes, truncated };
    say({ action: this.id, outcome, exit_code });
  }
}

class Slave {
  // What is at hand, all that ever was, and what was cancelled before it came.
  actions = new Map();
  known = new Set();
  cancelled = new Set();
  running = new Set();
  attachments = 0;

  constructor(keepalives) {
    this.keepalives = keepalives;
  }

  /** Opens the channel at the master that answered a keepalive, and again when it breaks or the keepalives moved. */
  async run(stopping) {
    let seen = 0;
    let haste = HASTE;
    while (!stopping.aborted) {
      const { master, key, accepted } = this.keepalives;
      if (accepted <= seen) {
        await once(this.keepalives, 'accepted');
        continue;
      }
      const error = await this.attach(master, key, stopping);
      if (stopping.aborted || this.keepalives.master !== master) continue;
      say({ detached: master.url, error: error.details });
      // A pod whose channel ended and that is not heard of within three seconds counts as LOST: so a keepalive soon, which
      // finds another master where this one is gone. The channel follows it there.
      seen = this.keepalives.accepted;
      haste = this.welcomed ? HASTE : Math.min(2000, haste * 2);
      await sleep(haste);
      this.keepalives.emit('hurry');
    }
  }

  /** Serves a channel to its end, and gives the reason. */
  attach(master, key, stopping) {
    this.attachments += 1;
    this.welcomed = false;
    // Those that this channel wants to hear of.
    const asked = new Set();
    const channel = master.actions.Attach();
    const tell = () => {
      for (const action of [...asked].map((id) => this.actions.get(id)).filter(Boolean)) {
        for (let message = action.next(); message; message = action.next()) channel.write(message);
      }
    };
    this.ring = tell;
    const move = () => this.keepalives.master !== master && channel.cancel();
    const stop = () => channel.cancel();
    this.keepalives.on('accepted', move);
    stopping.addEventListener('abort', stop);
    channel.write({
      hello: { key, nonce: this.keepalives.pod.nonce, attachment: this.attachments, actions: [...this.actions.keys()] },
    });
    channel.on('data', (order) => {
      const reply = this.take(order, asked, master, key);
      if (reply) channel.write(reply);
      tell();
    });
    return new Promise((resolve) => {
      channel.on('error', resolve);
      channel.on('end', () => resolve({ details: 'the master closed it' }));
    }).finally(() => {
      this.ring = () => {};
      this.keepalives.off('accepted', move);
      stopping.removeEventListener('abort', stop);
    });
  }

  /** Takes an order; gives what is to be answered at once. */
  take(message, asked, master, key) {
    const kind = message.order;
    if (kind === 'welcome') {
      this.welcomed = true;
      say({ attached: master.url });
    }
    // An order that is none is of a newer master.
    if (kind === undefined || kind === 'welcome') return undefined;
    const order = message[kind];
    const id = order.action_id;
    const action = this.actions.get(id);
    const taken = () => [Number(order.stdout_offset), Number(order.stderr_offset)];
    if (kind === 'run') {
      asked.add(id);
      if (action) action.resume(action.taken);
      else this.begin(order, master, key);
    } else if (kind === 'forget') {
      this.actions.delete(id);
    } else if (kind === 'credit') {
      if (action) Object.assign(action, { taken: taken(), pieces: 0 });
    } else if (!action) {
      if (kind === 'cancel') this.cancelled.add(id);
      return { unknown: { action_id: id } };
    } else if (kind === 'resume') {
      asked.add(id);
      action.resume(taken());
    } else {
      action.cancel();
    }
    return undefined;
  }

  /** A new action: it runs, unless it ran before, was cancelled before it came, or nobody proved who sends it. */
  begin(run, master, key) {
    const action = new Action(run);
    this.actions.set(action.id, action);
    if (this.known.has(action.id)) action.end('OUTCOME_LOST', -1, 0, 'it ran here before');
    else if (this.cancelled.has(action.id)) action.end('OUTCOME_CANCELLED', -1, 0, 'it was cancelled before it came');
    else if (!master.proved) action.end('OUTCOME_REFUSED', -1, 0, 'this slave runs commands only over TLS');
    else {
      const ended = action.run(run, this.keepalives.pod, key, () => this.ring());
      this.running.add(ended);
      ended.finally(() => this.running.delete(ended));
    }
    this.known.add(action.id);
  }

  /** Ends what runs. */
  async stop() {
    for (const action of this.actions.values()) action.cancel();
    await Promise.race([Promise.all(this.running), sleep(3000)]);
  }
}

module.exports = { Slave };
