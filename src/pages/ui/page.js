'use strict';

// What the status pages of proxy and gateway share: an answer each second, charts of the last two minutes, tables. Rates are
// differences between two answers. Nothing else is loaded.

const PERIOD_MS = 1000;
const SAMPLES_MAX = 120;

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
const PROCESS_CHARTS = [
  { name: 'Memory of the process', unit: '', value: level('process_resident_memory_bytes'), show: bytes },
  { name: 'CPU', unit: ' %', value: (now, before, seconds) => 100 * rate('process_cpu_seconds_total')(now, before, seconds) },
];

function addCharts(charts) {
  for (const chart of charts) {
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
  // A page that was opened just now shows half a minute in the whole width.
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

// Asks `path` each second and hands the answer to show(now, before, seconds); `before` is null at first and after a restart.
function follow(path, program, charts, show) {
  let before = null;
  let lastAnswer = Date.now();
  const tick = async () => {
    try {
      const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error('HTTP status ' + answer.status);
      const now = await answer.json();
      const restarted = before && now.up_ms < before.up_ms;
      const earlier = restarted ? null : before;
      const seconds = earlier ? (now.up_ms - earlier.up_ms) / 1000 : 0;
      show(now, earlier, seconds);
      for (const chart of charts) {
        if (restarted) chart.samples = [];
        if (seconds > 0) {
          chart.samples.push(chart.value(now, earlier, seconds));
          chart.samples.splice(0, chart.samples.length - SAMPLES_MAX);
        }
        draw(chart, now);
      }
      before = now;
      lastAnswer = Date.now();
      byId('trouble').hidden = true;
    } catch (error) {
      byId('trouble').textContent = 'The ' + program + ' has not answered for ' + duration((Date.now() - lastAnswer) / 1000) + ': ' + error.message;
      byId('trouble').hidden = false;
    }
    setTimeout(tick, PERIOD_MS);
  };
  addCharts(charts);
  tick();
}
