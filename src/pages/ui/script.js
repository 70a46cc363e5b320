'use strict';

// Asks /proxy/status each second and shows the answer. Rates are differences between two answers; the charts hold the last
// two minutes. Nothing else is loaded.

const PERIOD_MS = 1000;
const SAMPLES_MAX = 120;
const ROWS_MAX = 100;

const byId = (id) => document.getElementById(id);

// The sum of all metrics of this name, whatever their labels.
function total(status, name) {
  let sum = 0;
  for (const [key, value] of Object.entries(status.metrics)) {
    if (key === name || key.startsWith(name + '{')) sum += value;
  }
  return sum;
}

// Values of one label of a metric.
function byLabel(status, name, label) {
  const found = new Map();
  const pattern = new RegExp('[{,]' + label + '="([^"]*)"');
  for (const [key, value] of Object.entries(status.metrics)) {
    const match = key.startsWith(name + '{') && pattern.exec(key);
    if (match) found.set(match[1], (found.get(match[1]) || 0) + value);
  }
  return found;
}

const short = (value) => {
  if (!Number.isFinite(value)) return '–';
  if (value >= 1e6) return (value / 1e6).toFixed(1) + ' M';
  if (value >= 1e4) return (value / 1e3).toFixed(1) + ' k';
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
};
const bytes = (value) => {
  for (const unit of ['B', 'kB', 'MB', 'GB']) {
    if (value < 1000 || unit === 'GB') return (unit === 'B' ? value : value.toFixed(1)) + ' ' + unit;
    value /= 1000;
  }
  return '';
};
const duration = (seconds) => {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return '0 s';
  return parts.slice(first, first + 2).map(([size, unit], at) => {
    const rest = at === 0 ? seconds : seconds % parts[first][0];
    return Math.floor(rest / size) + ' ' + unit;
  }).join(' ');
};

// value(now, before, seconds) is a point of the chart; legend(now) a line below it.
const rate = (name) => (now, before, seconds) => (total(now, name) - total(before, name)) / seconds;
const level = (name) => (now) => total(now, name);
const sum = (values) => values.reduce((all, value) => all + value, 0);
const refusals = (status) => sum(status.tenants.map((one) => sum(Object.values(one.refused))));
const CHARTS = [
  { name: 'Calls of clients', unit: '/s', value: rate('grpc_server_started_total') },
  { name: 'Ranges answered from the cache', unit: '/s', value: rate('etcd_grpc_proxy_cache_hits_total'),
    legend: (now) => {
      const hits = total(now, 'etcd_grpc_proxy_cache_hits_total');
      const all = hits + total(now, 'etcd_grpc_proxy_cache_misses_total');
      return all ? (100 * hits / all).toFixed(1) + ' % of all ranges since the start' : 'no range yet';
    } },
  { name: 'Ranges passed to the cluster', unit: '/s', value: rate('etcd_grpc_proxy_cache_misses_total') },
  { name: 'Reads of the cluster’s revision', unit: '/s', value: rate('watershed_proxy_cache_read_index_total'),
    legend: (now) => {
      const reads = total(now, 'watershed_proxy_cache_read_index_total');
      const answers = byLabel(now, 'watershed_proxy_cache_answers_total', 'read').get('linearizable') || 0;
      return reads ? (answers / reads).toFixed(1) + ' linearizable answers share one' : 'no linearizable answer yet';
    } },
  { name: 'Watches of clients', unit: '', value: level('etcd_debugging_mvcc_watcher_total'),
    legend: (now) => short(total(now, 'watershed_proxy_upstream_watches')) + ' upstream, on ' +
      short(total(now, 'etcd_debugging_mvcc_watch_stream_total')) + ' streams of clients' },
  { name: 'Events to clients', unit: '/s', value: rate('etcd_debugging_mvcc_events_total'),
    legend: (now) => short(total(now, 'watershed_proxy_upstream_events_total')) + ' from the cluster for ' +
      short(total(now, 'etcd_debugging_mvcc_events_total')) + ' to clients since the start' },
  { name: 'Refused by limits of tenants', unit: '/s', value: (now, before, seconds) => Math.max(0, refusals(now) - refusals(before)) / seconds,
    isShown: (now) => now.tenants.length > 0,
    legend: (now) => short(refusals(now)) + ' since the start' },
  { name: 'Memory of the process', unit: '', value: level('process_resident_memory_bytes'), show: bytes },
  { name: 'CPU', unit: ' %', value: (now, before, seconds) => 100 * rate('process_cpu_seconds_total')(now, before, seconds) },
];

function addCharts() {
  for (const chart of CHARTS) {
    const figure = byId('chart').content.cloneNode(true).firstElementChild;
    figure.querySelector('.name').textContent = chart.name;
    figure.querySelector('svg').setAttribute('aria-label', chart.name + ', last two minutes');
    byId('charts').append(figure);
    chart.figure = figure;
    chart.samples = [];
  }
}

function draw(chart, now) {
  const { figure, samples } = chart;
  const newest = samples[samples.length - 1];
  const show = chart.show || short;
  figure.hidden = Boolean(chart.isShown) && !chart.isShown(now);
  figure.querySelector('output').textContent = samples.length ? show(newest) + chart.unit : '';
  figure.querySelector('.legend').textContent = chart.legend ? chart.legend(now) : '';
  if (samples.length < 2) return;
  const top = Math.max(...samples) * 1.1 || 1;
  // A proxy that was opened just now shows half a minute in the whole width.
  const step = 300 / (Math.max(samples.length, 30) - 1);
  const start = 300 - step * (samples.length - 1);
  const points = samples.map((value, at) => (start + step * at).toFixed(1) + ' ' + (59 - 57 * Math.max(value, 0) / top).toFixed(1));
  figure.querySelector('.line').setAttribute('d', 'M' + points.join('L'));
  figure.querySelector('.area').setAttribute('d', 'M' + start.toFixed(1) + ' 60L' + points.join('L') + 'L300 60Z');
}

// Rows of [text or {text, kind} or {meter}]; numbers stand to the right.
function fill(id, rows, none) {
  const body = byId(id).tBodies[0];
  const cells = (row) => row.map((cell) => {
    const td = document.createElement('td');
    if (cell && cell.meter !== undefined) {
      const meter = document.createElement('meter');
      Object.assign(meter, { min: 0, max: 1, low: 0.8, high: 0.95, optimum: 0, value: cell.meter });
      td.append(meter);
    } else {
      td.textContent = cell && cell.text !== undefined ? cell.text : cell;
    }
    if (cell && cell.kind) td.className = cell.kind;
    return td;
  });
  const shown = rows.length ? rows : [[{ text: none, kind: 'none' }]];
  body.replaceChildren(...shown.map((row) => {
    const tr = document.createElement('tr');
    tr.append(...cells(row));
    return tr;
  }));
}

const number = (text) => ({ text, kind: 'number' });

function rights(tenant) {
  const found = [];
  if (tenant.read_only) found.push('reads only');
  if (tenant.admin) found.push('admin');
  if (tenant.compact !== 'deny') found.push('compact: ' + tenant.compact);
  if (tenant.upstream) found.push('user of its own');
  return found.join(', ');
}

// The tenants with the most calls now, and the limits that are nearest to what they allow or have refused the most.
function showTenants(now, before, seconds) {
  byId('of-tenants').hidden = now.tenants.length === 0;
  const earlier = new Map((before ? before.tenants : []).map((one) => [one.name, one]));
  const perSecond = (one, field) => {
    const then = earlier.get(one.name);
    return then && seconds > 0 ? Math.max(0, one[field] - then[field]) / seconds : 0;
  };
  const busiest = now.tenants.map((one) => ({ one, calls: perSecond(one, 'requests') }))
    .sort((a, b) => b.calls - a.calls || b.one.requests - a.one.requests);
  const rows = busiest.slice(0, ROWS_MAX).map(({ one, calls }) => [
    one.name, one.namespace, rights(one), number(one.requests === null ? '' : short(one.requests)), number(short(calls)),
    number(bytes(perSecond(one, 'bytes'))), number(short(one.watches)), number(one.in_flight), number(one.waiting),
  ]);
  const more = now.tenants_total - rows.length;
  if (more > 0) rows.push([{ text: more + ' more', kind: 'none' }]);
  fill('tenants', rows, 'none');
  const share = (limit) => limit.used === null ? 0 : limit.used / Math.max(limit.max, 1);
  const limits = now.tenants.flatMap((one) => one.limits.map((limit) => ({ one, limit, refused: one.refused[limit.limit] || 0 })))
    .sort((a, b) => share(b.limit) - share(a.limit) || b.refused - a.refused);
  const size = (limit) => limit.limit.includes('bytes') ? bytes : short;
  fill('limits', limits.slice(0, ROWS_MAX).map(({ one, limit, refused }) => [
    one.name, limit.limit, number(limit.used === null ? '' : size(limit)(limit.used)), number(size(limit)(limit.max)),
    limit.used === null ? '' : { meter: share(limit) }, number(refused ? short(refused) : ''),
  ]), 'No tenant has a limit.');
}

function show(now, before) {
  const seconds = before ? (now.up_ms - before.up_ms) / 1000 : 0;
  const restarted = before && now.up_ms < before.up_ms;
  const uptime = duration(now.up_ms / 1000);
  byId('about').textContent = 'version ' + now.version + ', up ' + uptime + ', cluster ' + (now.cluster_id || 'not known yet') +
    ', ' + (now.tenants.length ? short(now.tenants_total) + ' tenants'
      : now.namespaces.map((one) => one.prefix ? 'namespace ' + one.prefix : 'all keys').join(', '));
  fill('endpoints', now.endpoints.map((one) => [one.endpoint, { text: one.state, kind: one.state }, one.reason || '']), 'none');
  const cached = now.namespaces.flatMap((space) => space.cached.map((one) => [
    space.prefix, one.range, { text: one.state.replace('_', ' '), kind: one.state }, number(short(one.keys)), number(bytes(one.bytes)),
    number(one.revision || ''), one.age_ms === null ? '' : duration(one.age_ms / 1000) + ' ago',
  ]));
  fill('cached', cached, 'No range is cached: the cache is off, or nothing has been read.');
  showTenants(now, restarted ? null : before, seconds);
  const passed = [...byLabel(now, 'watershed_proxy_cache_passed_total', 'reason')].sort((a, b) => b[1] - a[1]);
  fill('passed', passed.map(([reason, count]) => [reason.replaceAll('_', ' '), number(short(count))]), 'none');
  const calls = byLabel(now, 'grpc_server_started_total', 'grpc_method');
  const earlier = before && !restarted ? byLabel(before, 'grpc_server_started_total', 'grpc_method') : calls;
  const rows = [...calls].sort((a, b) => b[1] - a[1]).map(([method, count]) =>
    [method, number(short(count)), number(seconds ? short((count - (earlier.get(method) || 0)) / seconds) : '–')]);
  fill('calls', rows, 'none yet');
  for (const chart of CHARTS) {
    if (restarted) chart.samples = [];
    if (before && !restarted && seconds > 0) {
      chart.samples.push(chart.value(now, before, seconds));
      chart.samples.splice(0, chart.samples.length - SAMPLES_MAX);
    }
    draw(chart, now);
  }
}

let before = null;
let lastAnswer = Date.now();

async function tick() {
  try {
    const answer = await fetch('/proxy/status', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error('HTTP status ' + answer.status);
    const now = await answer.json();
    show(now, before);
    before = now;
    lastAnswer = Date.now();
    byId('trouble').hidden = true;
  } catch (error) {
    byId('trouble').textContent = 'The proxy has not answered for ' + duration((Date.now() - lastAnswer) / 1000) + ': ' + error.message;
    byId('trouble').hidden = false;
  }
  setTimeout(tick, PERIOD_MS);
}

addCharts();
tick();
