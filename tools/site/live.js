/* Live figures, below a chapter's own: a box or a query under the pointer, or chosen by keyboard, shows where it looks,
   what it says and what it costs; a slider goes through the training. Without JavaScript the still figure stands alone. */
(() => {
  const here = document.currentScript.src, SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  function draw(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) element.textContent = text;
    return element;
  }

  const unpack = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));

  class Live {
    constructor(place, data) {
      this.data = data;
      this.view = place.dataset.view;
      this.scenes = data.scenes.map(s => ({ ...s, probabilities: unpack(s.probabilities), attention: unpack(s.attention) }));
      this.scene = 0; this.moment = this.view === "matching" ? 1 : data.steps.length - 1;
      this.build(place);
      this.begin(0);
    }

    build(place) {
      const { data } = this, all = [...Array(data.queries).keys()];
      this.picture = draw("svg", { viewBox: "0 0 128 128", class: "live-picture", role: "img" });
      this.queries = all.map(q => make("button", { type: "button", "data-query": q, "aria-label": `query ${q}` }, String(q)));
      this.row = make("div", { class: "live-queries", role: "group", "aria-label": "queries" }, ...this.queries);
      this.said = make("p", { class: "live-said", "aria-live": "polite" });
      this.bars = make("div", { class: "live-bars" });
      this.table = make("table", { class: "live-costs" });
      const scenes = this.scenes.map((_, i) => {
        const button = make("button", { type: "button" }, `scene ${i + 1}`);
        button.addEventListener("click", () => this.begin(i));
        return button;
      });
      this.sceneButtons = scenes;
      this.slider = make("input", { type: "range", min: 0, max: data.steps.length - 1, value: this.moment, "aria-label": "moment of the training" });
      this.when = make("output", {});
      this.slider.addEventListener("input", () => { this.moment = Number(this.slider.value); this.show(); });
      this.queries.forEach((button, q) => {
        button.addEventListener("focus", () => this.choose(q));
        button.addEventListener("pointerenter", event => this.point(event, q));
        button.addEventListener("keydown", event => {
          const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          this.queries[(q + step + all.length) % all.length].focus();
        });
      });
      const controls = make("div", { class: "live-controls" }, ...scenes);
      if (this.view !== "attention") controls.append(make("label", {}, "training ", this.slider, this.when));
      const right = make("div", { class: "live-right" }, this.said, this.bars);
      const parts = make("div", { class: "live-parts" }, this.picture, right);
      const widget = make("div", { class: "live-widget", role: "group", "aria-label": "live figure" }, controls, parts, this.row);
      if (this.view === "matching") widget.append(make("div", { class: "live-scroll" }, this.table));
      const legend = "Try it on four other scenes: point at a box or a query, or use Tab and the arrow keys. " +
        "Orange: where the query looks, in the last decoder layer. Dashed: the object that the matching gives it. " +
        "Pale numbers: queries whose best score is below a half.";
      widget.prepend(make("p", { class: "live-legend" }, legend));
      place.querySelector("img").after(widget);
    }

    at(q) { return (this.moment * this.data.queries + q) * this.data.classes; }

    best(q) {
      const values = this.scenes[this.scene].probabilities.subarray(this.at(q), this.at(q) + this.data.classes);
      let label = 0;
      for (let k = 0; k < values.length - 1; k++) if (values[k] > values[label]) label = k;
      return { label, score: values[label] / 255, values };
    }

    begin(i) {  // with the query of the scene's first thing; things come before stuff
      const { targets, pairs } = this.scenes[i], labels = targets.map(t => t.label);
      this.scene = i;
      this.choose(pairs[this.moment][labels.indexOf(Math.min(...labels))]);
    }

    point(event, q) {  // not if the pointer rests, and the figure was drawn anew below it
      const place = `${event.clientX} ${event.clientY}`;
      if (place === this.pointed) return;
      this.pointed = place;
      if (this.query !== q) this.choose(q);
    }

    choose(q) { this.query = q; this.show(); }

    show() {
      const { data, query } = this, scene = this.scenes[this.scene], { names } = data;
      const answers = this.queries.map((_, q) => this.best(q));
      this.when.textContent = ` step ${data.steps[this.moment].toLocaleString("en")}`;
      this.slider.setAttribute("aria-valuetext", `step ${data.steps[this.moment]}`);
      this.sceneButtons.forEach((button, i) => button.setAttribute("aria-pressed", i === this.scene));
      this.queries.forEach((button, q) => {
        const sure = answers[q].score > 0.5;
        button.setAttribute("aria-pressed", q === query);
        button.style.borderColor = sure ? data.colours[answers[q].label] : "";
        button.classList.toggle("quiet", !sure);
      });
      this.showPicture(scene, answers);
      const { label, score, values } = answers[query];
      const target = scene.pairs[this.moment].indexOf(query);
      const owner = target < 0 ? "no object" : names[scene.targets[target].label];
      this.said.textContent = `Query ${query}: ${names[label]} ${score.toFixed(2)}. The matching gives it ${owner}.`;
      const order = [...values.keys()].filter(k => k > 0).sort((a, b) => values[b] - values[a]).slice(0, 5);
      this.bars.replaceChildren(...order.map(k => {
        const bar = make("span", { class: "live-bar" });
        bar.style.width = `${values[k] / 2.55}%`;
        bar.style.background = data.colours[k] || "#888";
        const value = make("span", {}, (values[k] / 255).toFixed(2));
        return make("div", {}, make("span", {}, names[k] || String(k)), make("span", { class: "live-track" }, bar), value);
      }));
      if (this.view === "matching") this.showCosts(scene);
    }

    showPicture(scene, answers) {
      const { data, query } = this, cells = data.grid, size = 128 / cells, shapes = [];
      shapes.push(draw("image", { href: scene.image, width: 128, height: 128, style: "image-rendering: pixelated" }));
      shapes.push(draw("rect", { width: 128, height: 128, fill: "#fff", opacity: 0.45 }));
      const start = (this.moment * data.queries + query) * cells * cells;
      for (let k = 0; k < cells * cells; k++) {
        const value = scene.attention[start + k] / 255;
        if (value > 0.06) shapes.push(draw("rect", {
          x: (k % cells) * size, y: Math.floor(k / cells) * size, width: size, height: size, fill: "#d55e00", opacity: 0.75 * value,
          class: "live-look",
        }));
      }
      const target = scene.pairs[this.moment].indexOf(query);
      if (target >= 0) shapes.push(this.box(scene.targets[target].box, { stroke: "#000", "stroke-dasharray": "3 2" }));
      answers.forEach((answer, q) => {
        if (answer.score <= 0.5 && q !== query) return;
        const strong = q === query ? { "stroke-width": 2.2 } : { opacity: 0.7 };
        const shape = this.box(scene.boxes[this.moment][q], { stroke: data.colours[answer.label], fill: "transparent", ...strong });
        shape.dataset.query = q;
        shape.addEventListener("pointerenter", event => this.point(event, q));
        shapes.push(shape);
      });
      // the smallest boxes lie on top, so that each can be pointed at
      const area = shape => shape.dataset.query === undefined ? Infinity : shape.getAttribute("width") * shape.getAttribute("height");
      const still = shapes.filter(s => s.dataset.query === undefined), boxes = shapes.filter(s => s.dataset.query !== undefined);
      this.picture.replaceChildren(...still, ...boxes.sort((a, b) => area(b) - area(a)));
      const looks = "where query " + query + " looks, its box, and the boxes with scores over a half";
      this.picture.setAttribute("aria-label", looks);
    }

    box([x, y, w, h], attributes) {
      return draw("rect", {
        x: 128 * (x - w / 2), y: 128 * (y - h / 2), width: 128 * w, height: 128 * h, fill: "none", "stroke-width": 1.1, ...attributes,
      });
    }

    showCosts(scene) {
      const costs = scene.costs[this.moment], pairs = scene.pairs[this.moment];
      const low = Math.min(...costs.flat()), high = Math.max(...costs.flat());
      const head = make("tr", {}, make("th", {}, "query"), ...scene.targets.map(t => make("th", {}, this.data.names[t.label])));
      const rows = costs.map((row, q) => {
        const cells = row.map((cost, t) => {
          const cell = make("td", pairs[t] === q ? { class: "live-pair" } : {}, cost.toFixed(1).replace("-", "−"));
          cell.style.setProperty("--dark", (1 - (cost - low) / (high - low)) ** 2);
          return cell;
        });
        const line = make("tr", q === this.query ? { class: "live-now" } : {}, make("th", {}, String(q)), ...cells);
        line.addEventListener("pointerenter", event => this.point(event, q));
        return line;
      });
      this.table.replaceChildren(head, ...rows);
    }
  }

  addEventListener("DOMContentLoaded", () => {
    const places = [...document.querySelectorAll(".live")].filter(place => place.querySelector("img"));
    if (!places.length) return;
    const script = make("script", { src: new URL("../live_data.js", here).href });
    script.addEventListener("load", () => places.forEach(place => new Live(place, window.DETR_LIVE)));
    document.head.append(script);
  });
})();
