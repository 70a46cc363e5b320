// Checks a store with the package etcd3 of npm over TLS as a user: keys, transactions, watches, leases, locks, elections,
// permissions, tokens that expire.
//
// usage: node checks.js ENDPOINT AUTHORITY [CHECK]    all by default; all but CHECK for -CHECK
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const { once } = require('node:events');
const { setTimeout: pause } = require('node:timers/promises');
const { Etcd3, EtcdPermissionDeniedError, EtcdAuthenticationFailedError, EtcdLockFailedError } = require('etcd3');

// What clients.sh has made: root, and app, who may write the keys below etcd3/, and those below election/, where the package has
// its elections.
const PASSWORD = 'a password';
const TOKEN_TTL_MS = 3000;
const BASE = `etcd3/${process.pid}/`;
const [endpoint, authority, wanted] = process.argv.slice(2);
if (!authority) {
  console.error('usage: node checks.js ENDPOINT AUTHORITY');
  process.exit(2);
}
const rootCertificate = fs.readFileSync(authority);

function as(username, password) {
  const auth = username ? { username, password } : undefined;
  return new Etcd3({ hosts: endpoint, credentials: { rootCertificate }, auth });
}

async function using(client, run) {
  try {
    return await run(client);
  } finally {
    client.close();
  }
}

const checks = {
  async kv(client) {
    const keys = client.namespace(`${BASE}kv/`);
    for (let i = 0; i < 5; i++) await keys.put(String(i)).value(String(4 - i));
    assert.deepEqual(await keys.getAll().sort('Value', 'Ascend').limit(2).keys(), ['4', '3']);
    assert.equal(await keys.getAll().count(), 5);
    assert.equal(await keys.get('0').string(), '4');
    assert.equal((await keys.delete().all().getPrevious()).length, 5);
    assert.equal(await keys.get('0'), null);
  },

  async txn(client) {
    const key = `${BASE}txn`;
    const create = () => client.if(key, 'Version', '==', 0).then(client.put(key).value('1')).else(client.get(key)).commit();
    assert.equal((await create()).succeeded, true);
    const lost = await create();
    assert.equal(lost.succeeded, false);
    assert.equal(lost.responses[0].response_range.kvs[0].value.toString(), '1');
    const account = `${BASE}account`;
    await client.put(account).value(0);
    const add = () => client.stm({ retries: 100 }).transact(tx => tx.get(account).number().then(n => tx.put(account).value(n + 1)));
    await Promise.all([add(), add(), add(), add()]);
    assert.equal(await client.get(account).number(), 4);
  },

  async watch(client) {
    const prefix = `${BASE}watch/`;
    const first = await client.put(`${prefix}0`).value('past');
    const watcher = await client.watch().prefix(prefix).startRevision(first.header.revision).withPreviousKV().create();
    const events = [];
    const all = new Promise((resolve, reject) => {
      watcher.on('error', reject);
      watcher.on('data', answer => {
        events.push(...answer.events);
        if (events.length >= 53) resolve();
      });
    });
    for (let i = 1; i < 50; i++) await client.put(prefix + (i % 3)).value(String(i));
    const deleted = await client.delete().prefix(prefix);
    await all;
    assert.equal(events.length, 53);
    assert.equal(events.filter(event => event.type === 'Delete').length, 3);
    assert.equal(events[52].kv.mod_revision, deleted.header.revision);
    await watcher.cancel();
  },

  async lease(client) {
    const key = `${BASE}lease`;
    const lease = client.lease(5);
    await lease.put(key).value('here');
    const lost = once(lease, 'lost').then(([error]) => { throw error; });
    // The client keeps it alive for longer than its time.
    await Promise.race([pause(8000), lost]);
    lost.catch(() => {});
    assert.equal(await client.get(key).string(), 'here');
    const id = await lease.grant();
    const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
    assert.deepEqual(left.keys.map(String), [key]);
    await lease.revoke();
    assert.equal(await client.get(key), null);
  },

  async lock(client) {
    const name = `${BASE}lock`;
    const held = client.lock(name);
    await held.acquire();
    await assert.rejects(client.lock(name).acquire(), EtcdLockFailedError);
    await held.release();
    await client.lock(name).do(async () => {});
  },

  async election(client) {
    const election = client.election(`${BASE}election`, 10);
    const one = election.campaign('one');
    await once(one, 'elected');
    assert.equal(await election.leader(), 'one');
    const observer = await election.observe();
    assert.equal(observer.leader(), 'one');
    await one.proclaim('uno');
    while (observer.leader() !== 'uno') await once(observer, 'change');
    const two = election.campaign('two');
    const elected = once(two, 'elected');
    await one.resign();
    await elected;
    while (observer.leader() !== 'two') await once(observer, 'change');
    await observer.cancel();
    await two.resign();
  },

  async permissions(client) {
    const denied = EtcdPermissionDeniedError;
    await assert.rejects(client.get('elsewhere/key'), denied);
    await assert.rejects(client.put('elsewhere/key').value(''), denied);
    await assert.rejects(client.delete().all(), denied);
    await assert.rejects(client.if('elsewhere/key', 'Version', '==', 0).then(client.get(BASE)).commit(), denied);
    await assert.rejects(client.getUsers(), denied);
    await using(as('app', 'another password'), wrong => assert.rejects(wrong.get(BASE), EtcdAuthenticationFailedError));
    await using(as(), anonymous => assert.rejects(anonymous.get(BASE), /user name is empty/));
  },

  async 'users and roles'() {
    const name = `etcd3-${process.pid}`;
    await using(as('root', PASSWORD), async root => {
      const [user, role] = [root.user(name), root.role(name)];
      await user.create('a password of its own');
      await role.create();
      await role.grant({ permission: 'Readwrite', key: `${BASE}users` });
      await user.addRole(name);
      assert.deepEqual((await user.roles()).map(role => role.name), [name]);
      await using(as(name, 'a password of its own'), async client => {
        await client.put(`${BASE}users`).value('1');
        // Users change under its token: it logs in again by itself.
        const other = root.role(`${name}-other`);
        await other.create();
        await client.put(`${BASE}users`).value('2');
        await other.delete();
        await user.removeRole(name);
        await assert.rejects(client.get(`${BASE}users`), EtcdPermissionDeniedError);
      });
      await user.delete();
      await role.delete();
    });
  },

  async 'expired token'(client) {
    const key = `${BASE}token`;
    const watcher = await client.watch().key(key).create();
    for (const value of ['1', '2']) {
      // A token that nobody uses ends; this is the time it takes.
      await pause(TOKEN_TTL_MS + 2000);
      const event = once(watcher, 'put');
      await client.put(key).value(value);
      assert.equal((await event)[0].value.toString(), value);
    }
    await watcher.cancel();
  },
};

(async () => {
  let failed = false;
  const client = as('app', PASSWORD);
  for (const [name, run] of Object.entries(checks)) {
    if (wanted && (wanted.startsWith('-') ? wanted === `-${name}` : wanted !== name)) continue;
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error('no end within 120 s')), 120_000);
    });
    try {
      await Promise.race([run(client), late]);
      console.log(`ok ${name}`);
    } catch (error) {
      failed = true;
      console.log(`FAILED ${name}: ${error.stack}`);
    } finally {
      clearTimeout(timer);
    }
  }
  client.close();
  process.exit(failed ? 1 : 0);
})();
