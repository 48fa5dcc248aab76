// Draws the charts from the tables that hold their numbers (uPlot). A table stays below its chart, closed.
"use strict";

(() => {
  if (!window.uPlot) return;
  const drawn = new Map();
  const style = () => getComputedStyle(document.documentElement);
  const FILLS = { good: "--fill-good", warn: "--fill-warn", bad: "--fill-bad", live: "--fill-live", idle: "--fill-idle" };

  // First column: times (datetime) or categories; the others: numbers. A header's data-kind is its colour.
  function read(figure) {
    const table = figure.querySelector(".numbers table"); // not the legend of a chart that is there already
    const heads = [...table.querySelectorAll("thead th")];
    const rows = [...table.querySelectorAll("tbody tr")];
    const columns = heads.map(() => []);
    for (const row of rows) {
      [...row.children].forEach((cell, index) => {
        const time = index === 0 ? cell.querySelector("time") : null;
        const text = cell.dataset.value ?? cell.textContent.trim();
        columns[index].push(time ? Date.parse(time.dateTime) / 1000 : text === "" || text === "–" ? null : Number(text));
      });
    }
    const labels = rows.map((row) => row.children[0].textContent.trim());
    return { heads, columns, labels };
  }

  function draw(figure) {
    const { heads, columns, labels } = read(figure);
    const plot = figure.querySelector(".plot");
    const empty = !columns.slice(1).some((column) => column.some((value) => value));
    plot.classList.toggle("few", empty || columns[0].length < 2);
    if (plot.classList.contains("few")) return;
    const css = style();
    const colour = (name) => css.getPropertyValue(name).trim();
    const kind = figure.dataset.chart;
    const unit = figure.dataset.unit ? ` ${figure.dataset.unit}` : "";
    const stacked = kind === "stacked";
    const names = heads.slice(1).map((head) => head.textContent.trim());
    const kinds = heads.slice(1).map((head) => head.dataset.kind || "idle");
    const values = columns.slice(1);
    const shown = stacked ? sums(values) : values;
    const stepped = uPlot.paths.stepped({ align: 1 });
    const axis = { stroke: colour("--soft"), font: "12px system-ui, sans-serif", grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const series = names.map((name, index) => ({
      label: name,
      stroke: colour(FILLS[kinds[index]]),
      fill: stacked ? colour(FILLS[kinds[index]]) : undefined,
      width: stacked ? 0 : 2,
      paths: stepped,
      points: { show: false },
      value: (_plot, _value, _series, at) => (at == null || values[index][at] == null ? "–" : `${values[index][at]}${unit}`),
    }));
    plot.replaceChildren();
    const options = {
      width: Math.max(240, plot.clientWidth - 16),
      height: 220,
      legend: { live: true },
      cursor: { y: false, points: { show: false } },
      scales: { x: { time: true }, y: { range: (_plot, _low, high) => [0, figure.dataset.unit === "%" ? 100 : Math.max(1, high * 1.05)] } },
      axes: [{ ...axis, space: 84, values: times }, { ...axis, size: 46, values: (_plot, splits) => splits.map((value) => (Number.isInteger(value) ? `${value}${unit}` : "")) }],
      series: [{ label: "Time", value: (_plot, value) => (value == null ? "–" : labels[columns[0].indexOf(value)] ?? "–") }, ...(stacked ? [...series].reverse() : series)],
    };
    drawn.get(figure)?.destroy();
    drawn.set(figure, new uPlot(options, [columns[0], ...(stacked ? [...shown].reverse() : shown)], plot));
    const canvas = plot.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}; the numbers are in the table below`);
  }

  function sums(values) {
    const total = values[0]?.map(() => 0) ?? [];
    return values.map((column) => column.map((value, index) => (total[index] += value ?? 0)));
  }

  function times(_plot, splits, _axis, _space, step) {
    const two = (value) => String(value).padStart(2, "0");
    return splits.map((split) => {
      const at = new Date(split * 1000);
      const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
      if (step >= 86400) return day.slice(5);
      return `${two(at.getHours())}:${two(at.getMinutes())}${step < 60 ? `:${two(at.getSeconds())}` : ""}`;
    });
  }

  function all() {
    for (const figure of document.querySelectorAll("figure[data-chart]")) draw(figure);
  }

  all();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) { width = window.innerWidth; all(); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  document.addEventListener("htmx:afterSettle", () => all());
})();
