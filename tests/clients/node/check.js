'use strict';

// The clients `ali-ons` (3.x) and `rocketmq` (2.x, its fork) of npm against the name server at NAMESRV_ADDR:
//   node check.js [ali-ons|rocketmq]
// `rocketmq` 2.x is made of generators and tries refused messages again by itself, so some checks are for ali-ons only.
// Each check prints one line; the exit code is 1 if one failed.

const which = process.argv[2] || 'ali-ons';
const { Producer, Consumer, Message } = require(which);
const co = require('co');
const old = which === 'rocketmq';
const call = result => (old ? co(result) : result);

const run = `${Date.now()}-${process.pid}`;
const name = prefix => `node-${prefix}-${run}`;
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
// Both clients ask an HTTP server for their name servers; this one answers without a connection.
const httpclient = { request: async () => ({ status: 200, data: process.env.NAMESRV_ADDR, res: { statusCode: 200 } }) };
const quiet = { info() {}, warn() {}, debug() {}, error(...all) { if (process.env.CHECK_LOG) console.error(...all); } };
const common = {
  httpclient, logger: quiet, accessKeyId: 'no', accessKeySecret: 'no', onsAddr: 'http://127.0.0.1/rocketmq/nsaddr', nameSrv: process.env.NAMESRV_ADDR,
};
const waitMs = Number(process.env.CHECK_WAIT_S || 60) * 1000;

// Waits while this process runs: time in which it was stopped does not count.
async function until(what, condition) {
  let waited = 0;
  while (!condition()) {
    if (waited > waitMs) throw new Error(`not within ${waitMs} ms: ${typeof what === 'function' ? what() : what}`);
    const begun = Date.now();
    await sleep(20);
    waited += Math.min(Date.now() - begun, 200);
  }
}

function equal(a, b, what) {
  if (JSON.stringify(a) !== JSON.stringify(b)) throw new Error(`${what}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`);
}

async function producer() {
  const made = new Producer(Object.assign({ producerGroup: name('producer') }, common));
  made.on('error', error => quiet.error(error));
  await made.ready();
  return made;
}

const made = new Set();

// These clients make no topics by themselves; the request that makes one is theirs.
async function create(from, topic) {
  if (made.has(topic)) return;
  made.add(topic);
  const api = from._mqClient;
  const route = await call(api.getDefaultTopicRouteInfoFromNameServer('TBW102', 3000));
  const config = { topicName: topic, readQueueNums: 4, writeQueueNums: 4, perm: 6, topicFilterType: 'SINGLE_TAG', topicSysFlag: 0, order: false };
  for (const broker of route.brokerDatas) await call(api.createTopic(broker.brokerAddrs[0], 'TBW102', config, 3000));
  const end = Date.now() + waitMs;
  for (;;) {
    try {
      return await call(api.getTopicRouteInfoFromNameServer(topic, 3000));
    } catch (error) {
      if (Date.now() > end) throw error;
      await sleep(50);
    }
  }
}

async function send(from, topic, body, tags, change) {
  await create(from, topic);
  const message = new Message(topic, tags || 'TagA', body);
  if (change) change(message);
  const result = await call(from.send(message));
  equal(result.sendStatus, 'SEND_OK', 'status of a send');
  return result;
}

async function listen(group, topic, expression, options, refuse) {
  const consumer = new Consumer(Object.assign({ consumerGroup: group }, common, options));
  const got = [];
  consumer.on('error', error => quiet.error(error));
  const handle = message => {
    got.push({ body: message.body.toString(), times: message.reconsumeTimes, at: Date.now(), message });
    if (refuse && refuse(message)) throw new Error('again, please');
  };
  consumer.subscribe(topic, expression, old ? function* (message) { yield Promise.resolve(); handle(message); } : async message => handle(message));
  await consumer.ready();
  return { close: () => call(consumer.close()), got, bodies: () => got.map(entry => entry.body) };
}

const series = (word, count) => Array.from({ length: count }, (_, n) => `${word} ${n}`);

const checks = {
  async 'sends arrive once, with keys and properties'() {
    const topic = name('sync');
    const from = await producer();
    const ids = new Set();
    for (const body of series('m', 40)) {
      const result = await send(from, topic, body, 'TagA', message => { message.keys = [ 'k1', 'k2' ]; message.properties.colour = 'grün'; });
      ids.add(result.msgId);
    }
    equal(ids.size, 40, 'unique ids');
    const listener = await listen(name('g-sync'), topic, '*');
    await until(() => listener.bodies(), () => listener.got.length >= 40);
    await sleep(500);
    equal(listener.bodies().sort(), series('m', 40).sort(), 'bodies');
    equal(listener.got[0].message.keys, 'k1 k2', 'keys');
    equal(listener.got[0].message.properties.colour, 'grün', 'a property');
    await listener.close();
    await call(from.close());
  },
  async 'a large body is compressed and comes back'() {
    const topic = name('large');
    const body = 'all work and no play '.repeat(20000);
    const from = await producer();
    await send(from, topic, body);
    const listener = await listen(name('g-large'), topic, '*');
    await until('the large body', () => listener.got.length === 1);
    equal(listener.got[0].body === body, true, 'the body');
    await listener.close();
    await call(from.close());
  },
  async 'tags filter'() {
    const topic = name('tags');
    const from = await producer();
    for (const body of series('red', 10)) await send(from, topic, body, 'red');
    for (const body of series('blue', 10)) await send(from, topic, body, 'blue');
    const listener = await listen(name('g-tags'), topic, 'red || green');
    await until(() => listener.bodies(), () => listener.got.length >= 10);
    await sleep(1000);
    equal(listener.bodies().sort(), series('red', 10).sort(), 'bodies');
    await listener.close();
    await call(from.close());
  },
  async 'a delayed message comes when it is due'() {
    const topic = name('delay');
    const from = await producer();
    await send(from, topic, 'first');
    const listener = await listen(name('g-delay'), topic, '*');
    await until('the first', () => listener.got.length === 1);
    const begun = Date.now();
    await send(from, topic, 'late', 'TagA', message => { message.properties.DELAY = '2'; });
    await until('the late one', () => listener.got.length === 2);
    const took = listener.got[1].at - begun;
    equal(took > 4900 && took < 8000, true, `due after ${took} ms`);
    await listener.close();
    await call(from.close());
  },
  async 'a refused message comes again'() {
    const topic = name('retry');
    const from = await producer();
    await send(from, topic, 'refuse me');
    const listener = await listen(name('g-retry'), topic, '*', {}, message => message.reconsumeTimes === 0);
    await until(() => JSON.stringify(listener.got), () => listener.got.length === 2);
    equal(listener.got.map(entry => [ entry.body, entry.times ]), [[ 'refuse me', 0 ], [ 'refuse me', 1 ]], 'what came');
    await listener.close();
    await call(from.close());
  },
  async 'a second run of a group goes on where the first ended'() {
    const topic = name('resume');
    const group = name('g-resume');
    const from = await producer();
    for (const body of series('one', 10)) await send(from, topic, body);
    let listener = await listen(group, topic, '*');
    await until(() => listener.bodies(), () => listener.got.length >= 10);
    await sleep(6000); // The offsets are committed every five seconds.
    await listener.close();
    for (const body of series('two', 10)) await send(from, topic, body);
    listener = await listen(group, topic, '*');
    await until(() => listener.bodies(), () => listener.got.length >= 10);
    await sleep(1000);
    equal(listener.bodies().sort(), series('two', 10).sort(), 'bodies');
    await listener.close();
    await call(from.close());
  },
  async 'a broadcast reaches the consumer'() {
    const topic = name('broadcast');
    const from = await producer();
    await send(from, topic, 'm 0');
    const listener = await listen(name('g-broadcast'), topic, '*', { isBroadcast: true });
    await sleep(2000);
    for (const body of series('m', 10).slice(1)) await send(from, topic, body);
    await until(() => listener.bodies(), () => series('m', 10).slice(1).every(body => listener.bodies().includes(body)));
    await listener.close();
    await call(from.close());
  },
};

if (old) delete checks['a refused message comes again'];

if (which === 'ali-ons') {
  checks['SQL92 filters'] = async () => {
    const topic = name('sql');
    const from = await producer();
    for (const [ n, body ] of series('m', 20).entries()) await send(from, topic, body, 'TagA', message => { message.properties.n = `${n}`; });
    const listener = await listen(name('g-sql'), topic, { expressionType: 'SQL92', subString: 'n > 9 AND TAGS IS NOT NULL' });
    await until(() => listener.bodies(), () => listener.got.length >= 10);
    await sleep(1000);
    equal(listener.bodies().sort(), series('m', 20).slice(10).sort(), 'bodies');
    await listener.close();
    await call(from.close());
  };
}

(async () => {
  let failed = 0;
  const wanted = process.argv[3];
  for (const [ title, check ] of Object.entries(checks)) {
    if (wanted && !title.includes(wanted)) continue;
    const begun = Date.now();
    try {
      await check();
      console.log(`passed  node ${which}: ${title}, ${((Date.now() - begun) / 1000).toFixed(1)} s`);
    } catch (error) {
      failed++;
      console.log(`FAILED  node ${which}: ${title}: ${error.stack}`);
    }
  }
  process.exit(failed ? 1 : 0);
})();
