'use strict';
// The masters of a tier: a channel to each, one of which is in use until it fails.

const fs = require('fs');
const path = require('path');
const { setTimeout: sleep } = require('timers/promises');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

// The generated code is made when the program starts. What of it is no default: names as they are in the files, enums by
// name, 64-bit integers as text (a double does not hold all of them; `Number` where they are small), and `order.order`,
// `message.event`, ... that name which of a oneof is set.
const definition = protoLoader.loadSync(
  ['action', 'ensemble', 'keepalive'].map((file) => `kontrol/v1/${file}.proto`),
  { includeDirs: [path.join(__dirname, '../../../proto')], keepCase: true, enums: String, longs: String, defaults: true, oneofs: true },
);
const kontrol = grpc.loadPackageDefinition(definition).kontrol.v1;

const { status } = grpc;
// What another master may do better. The rest is the caller's mistake, and everywhere the same.
const ELSEWHERE = new Set([
  status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.RESOURCE_EXHAUSTED, status.CANCELLED, status.UNKNOWN,
  status.INTERNAL, status.ABORTED,
]);

const OPTIONS = {
  // A master whose machine is gone closes nothing: pings find that out.
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': 5_000,
  'grpc.keepalive_permit_without_calls': 1,
  // A master that was down is tried again soon. By default a channel sulks for up to two minutes.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 500,
  // The callback's state takes more than the 4 MiB of the default.
  'grpc.max_receive_message_length': 8 << 20,
};

class Master {
  constructor(url, ca, tokenFile) {
    this.url = url;
    const { protocol, hostname } = new URL(url);
    this.proved = protocol === 'https:';
    let credentials = grpc.credentials.createInsecure();
    if (this.proved) {
      credentials = grpc.credentials.createSsl(ca && fs.readFileSync(ca));
      if (tokenFile) {
        // Sent with each call, over TLS only. The file is read each time, for a token may be replaced.
        const token = grpc.credentials.createFromMetadataGenerator((_, callback) => {
          const metadata = new grpc.Metadata();
          metadata.set('authorization', `Bearer ${fs.readFileSync(tokenFile, 'utf8').trim()}`);
          callback(null, metadata);
        });
        credentials = grpc.credentials.combineChannelCredentials(credentials, token);
      }
    }
    // Not from `URL`, which drops a port that is the usual one of https.
    const target = `${hostname}:${/:(\d+)\/?$/.exec(url)?.[1] ?? 8000}`;
    // The first one's channel serves all three: one connection, as a slave should have.
    this.keepalives = new kontrol.KeepaliveService(target, credentials, OPTIONS);
    const channelOverride = this.keepalives.getChannel();
    this.ensemble = new kontrol.EnsembleService(target, credentials, { channelOverride });
    this.actions = new kontrol.ActionService(target, credentials, { channelOverride });
  }
}

/** A unary call as a promise, with so many milliseconds. */
function call(service, method, request, limit) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + limit;
    service[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

class Tier {
  constructor(urls, ca, tokenFile) {
    this.masters = urls.map((url) => new Master(url, ca, tokenFile));
  }

  /** The one in use. */
  get master() {
    return this.masters[0];
  }

  /** It failed: the next one is in use, unless another call went there already. */
  leave(master) {
    if (master === this.master) this.masters.push(this.masters.shift());
  }

  /** Tries one master after the other until one accepts, for so many milliseconds. */
  async untilAccepted(limit, attempt) {
    const end = Date.now() + limit;
    for (let tries = 1; ; tries += 1) {
      const { master } = this;
      try {
        return { master, answer: await attempt(master, Math.min(limit / 3, end - Date.now())) };
      } catch (error) {
        if (!ELSEWHERE.has(error.code)) throw error;
        this.leave(master);
        if (tries % this.masters.length === 0) await sleep(100);
        if (Date.now() >= end) throw error;
      }
    }
  }

  /** One unary call, of any master. */
  async call(service, method, request) {
    const attempt = (master, limit) => call(master[service], method, request, limit);
    return (await this.untilAccepted(10_000, attempt)).answer;
  }
}

module.exports = { ELSEWHERE, Tier, call, sleep, status };
