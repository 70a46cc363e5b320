'use strict';

// The status page of a gateway, from /gateway/status.

const ofEndpoints = (field) => (status) => sum(status.endpoints.map((one) => one[field]));
const perSecond = (field) => (now, before, seconds) => Math.max(0, ofEndpoints(field)(now) - ofEndpoints(field)(before)) / seconds;
const failures = (one) => one.connect_failures + one.check_failures;
const bytesPerSecond = (value) => bytes(value) + '/s';
const CHARTS = [
  { name: 'Open connections', unit: '', value: (now) => now.connections,
    legend: (now) => 'at most ' + short(now.connections_max) },
  { name: 'New connections', unit: '/s', value: rate('watershed_gateway_accepted_total'),
    legend: (now) => short(total(now, 'watershed_gateway_accepted_total')) + ' since the start' },
  { name: 'To endpoints', unit: '', value: perSecond('bytes_upstream'), show: bytesPerSecond,
    legend: (now) => bytes(ofEndpoints('bytes_upstream')(now)) + ' since the start' },
  { name: 'To clients', unit: '', value: perSecond('bytes_downstream'), show: bytesPerSecond,
    legend: (now) => bytes(ofEndpoints('bytes_downstream')(now)) + ' since the start' },
  { name: 'Turned away or not served', unit: '/s',
    value: (now, before, seconds) => rate('watershed_gateway_refused_total')(now, before, seconds) +
      rate('watershed_gateway_unserved_total')(now, before, seconds),
    legend: (now) => [...byLabel(now, 'watershed_gateway_refused_total', 'reason'), ['no endpoint', total(now, 'watershed_gateway_unserved_total')]]
      .filter(([, count]) => count > 0).map(([reason, count]) => reason + ' ' + short(count)).join(', ') || 'none since the start' },
  { name: 'Ended by an error', unit: '/s', value: rate('watershed_gateway_resets_total'),
    legend: (now) => short(total(now, 'watershed_gateway_resets_total')) + ' since the start' },
  ...PROCESS_CHARTS,
];

function show(now, before, seconds) {
  byId('about').textContent = 'version ' + now.version + ', up ' + duration(now.up_ms / 1000) + ', ' +
    (now.accepting ? 'accepts connections on ' : 'no longer accepts connections on ') + now.listen_addr;
  const key = (one) => JSON.stringify([one.route, one.endpoint]);
  const earlier = new Map((before ? before.endpoints : []).map((one) => [key(one), one]));
  const since = (one, field) => {
    const then = earlier.get(key(one));
    return then && seconds > 0 ? Math.max(0, one[field] - then[field]) / seconds : 0;
  };
  const state = (one) => one.state === 'up' && one.slow_start_factor < 1
    ? { text: 'up, slow start ' + Math.round(100 * one.slow_start_factor) + ' %', kind: 'leaving' } : { text: one.state, kind: one.state };
  fill('endpoints', now.endpoints.map((one) => [
    one.endpoint, state(one), number(short(one.connections)), number(short(since(one, 'connected'))),
    number(bytesPerSecond(since(one, 'bytes_upstream'))), number(bytesPerSecond(since(one, 'bytes_downstream'))), number(short(failures(one))),
    Object.entries(one.ejections).map(([cause, count]) => cause + ' ' + count).join(', '),
    number(one.priority ?? ''), number(one.weight ?? ''), one.origin ?? '', one.route ?? '', one.reason ?? '',
  ]), 'none');
}

follow('/gateway/status', 'gateway', CHARTS, show);
