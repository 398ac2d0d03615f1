'use strict';
// The keepalives of one pod, one call each or over a stream, and what became of them.

const { randomBytes } = require('crypto');
const { EventEmitter, once } = require('events');
const { call, sleep, status } = require('./tier');

/** Every line that a client prints is a JSON object. */
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

/** A Duration is seconds (as text, being 64 bits wide) and nanoseconds. */
const milliseconds = (duration) => (duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0);

/** Any JSON value as a google.protobuf.Value: the loader takes none by itself. */
function toValue(json) {
  if (json === null) return { nullValue: 'NULL_VALUE' };
  if (Array.isArray(json)) return { listValue: { values: json.map(toValue) } };
  if (typeof json === 'object') {
    const fields = Object.entries(json).map(([name, value]) => [name, toValue(value)]);
    return { structValue: { fields: Object.fromEntries(fields) } };
  }
  return { [`${typeof json}Value`]: json };
}

class Pod {
  constructor({ app, id, ip, role }) {
    this.id = id;
    // Another nonce is another start of the same pod.
    this.nonce = randomBytes(8).toString('hex');
    this.said = { app, id, ip, role, nonce: this.nonce, labels: { app, role }, payload: toValue({ client: 'node' }) };
  }

  ping(beat, down = false) {
    return { ...this.said, beat, down };
  }
}

const failure = (code, message) => Object.assign(new Error(message), { code, details: message });

/** A keepalive as a call of its own. */
class Unary {
  attempt(master, ping, limit) {
    return call(master.keepalives, 'Ping', ping, limit);
  }
}

/** Keepalives over one stream: whole at first, and then a number is enough. */
class Stream {
  beats = 0;
  again = 0;

  async attempt(master, ping, limit) {
    try {
      let answer;
      if (this.open && this.master === master) {
        this.beats += 1;
        answer = await this.exchange({ beat: ping.beat }, limit);
        this.again += answer.result === 'again' ? 1 : 0;
      } else {
        this.close();
        this.master = master;
        const open = master.keepalives.PingStream();
        this.open = open;
        // Whoever does not listen to errors is ended by the first one. It also tells of a stream that was cancelled before, late.
        open.on('error', (error) => this.over(open, error));
        open.on('end', () => this.over(open, failure(status.UNAVAILABLE, 'the master closed the stream')));
        open.on('data', (data) => this.open === open && this.answered?.(data));
      }
      // A new stream, or a master that can't tell what still holds: the whole keepalive, at once.
      if (!answer || answer.result === 'again') answer = await this.exchange({ ping }, limit);
      // A refusal does not end the stream.
      if (answer.result === 'error') throw failure(answer.error.code, answer.error.message);
      return answer.response;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  exchange(request, limit) {
    return new Promise((resolve, reject) => {
      // A stream has no deadline for a message; without this one, a master that hangs would hold the pod.
      const timer = setTimeout(() => reject(failure(status.DEADLINE_EXCEEDED, 'no answer in time')), limit);
      this.answered = (data) => { clearTimeout(timer); resolve(data); };
      this.broke = (error) => { clearTimeout(timer); reject(error); };
      this.open.write(request);
    });
  }

  /** A stream is over. Between two keepalives nobody waits: the next one finds no stream and begins anew. */
  over(open, error) {
    if (this.open !== open) return;
    const { broke } = this;
    this.close();
    broke?.(error);
  }

  close() {
    this.open?.cancel();
    this.open = this.answered = this.broke = undefined;
  }
}

/** Sends one each interval that the last answer told, until it is stopped; then says goodbye. Emits `accepted`. */
class Keepalives extends EventEmitter {
  beat = 0;
  sent = 0;
  accepted = 0;
  lost = 0;
  // Until a master tells; long enough for a first connection on a busy machine.
  interval = 5000;
  slowest = 0;

  constructor(tier, pod, way) {
    super();
    Object.assign(this, { tier, pod, way });
  }

  async run(stopping) {
    while (!stopping.aborted) {
      const began = Date.now();
      await this.report();
      // A little luck keeps pods from reporting in step.
      const pause = this.interval * (0.9 + 0.1 * Math.random()) - (Date.now() - began);
      // A signal ends the wait, and so does whoever wants one sent soon.
      const over = new AbortController();
      const { signal } = over;
      await Promise.race([sleep(Math.max(0, pause), null, { signal }), once(this, 'hurry', { signal }), once(stopping, 'abort', { signal })])
        .catch(() => {});
      over.abort();
    }
  }

  async report() {
    this.beat += 1;
    this.sent += 1;
    const began = Date.now();
    const ping = this.pod.ping(this.beat);
    try {
      // Time for each of some masters within an interval.
      const { master, answer } = await this.tier.untilAccepted(this.interval, (one, limit) => this.way.attempt(one, ping, limit));
      this.accepted += 1;
      this.slowest = Math.max(this.slowest, Date.now() - began);
      this.interval = milliseconds(answer.interval) || this.interval;
      this.master = master;
      this.key = answer.key;
      say({ beat: this.beat, master: master.url, seq: Number(answer.seq) });
      this.emit('accepted');
    } catch (error) {
      if (error.code === undefined) throw error;
      // The pod lives on: it reports again. FAILED_PRECONDITION is for a person to read.
      this.lost += 1;
      say({ lost: this.beat, error: error.details });
    }
  }

  /** Leaves the roster at once, instead of when the TTL is over. */
  async goodbye() {
    await this.tier.call('keepalives', 'Ping', this.pod.ping(this.beat + 1, true));
  }

  summary() {
    const { sent, accepted, lost, way } = this;
    say({ sent, accepted, lost, slowest_seconds: this.slowest / 1000, beats: way.beats ?? 0, again: way.again ?? 0 });
  }
}

module.exports = { Keepalives, Pod, Stream, Unary, milliseconds, say };
