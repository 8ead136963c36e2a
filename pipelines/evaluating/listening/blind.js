// The blind test: clips in random order, samples in random order, ratings kept in this browser and saved as CSV.
"use strict";

(() => {
  const HEARD_S = 1.0; // a sample counts as heard after so long
  const test = window.quantoneTest;
  const conditions = unseal(test.sealed); // token -> name
  const player = new Player();
  const byId = (id) => document.getElementById(id);
  const storageKey = `quantone-listening-${test.id}`;

  let state = recall() ?? freshState();
  let samples = []; // of the clip on the page, in the order shown: { token, slider, button, output, column }
  let shown = null; // its index in `samples`; -1 is the reference
  let lastTick = null;
  let loading = 0;

  // -- What is kept ---------------------------------------------------------------------------------------------

  function freshState() {
    return { listener: null, at: 0, scores: {}, heard: {} };
  }

  function recall() {
    try {
      return JSON.parse(localStorage.getItem(storageKey));
    } catch {
      return null; // storage is off: the test works, a reload begins it again
    }
  }

  function keep() {
    try {
      localStorage.setItem(storageKey, JSON.stringify(state));
    } catch {
      // as above
    }
  }

  // -- Order: random for each listener and clip, and the same after a reload --------------------------------------

  function randomNumbers(text) {
    let seed = 2166136261; // FNV-1a, then mulberry32
    for (const letter of text) seed = Math.imul(seed ^ letter.codePointAt(0), 16777619);
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let mixed = Math.imul(seed ^ (seed >>> 15), seed | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  }

  function shuffled(items, text) {
    const random = randomNumbers(text);
    const order = [...items];
    for (let last = order.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [order[last], order[other]] = [order[other], order[last]];
    }
    return order;
  }

  const clipsInOrder = () => shuffled(test.clips, `${test.id} ${state.listener}`);
  const tokensInOrder = (clip) => shuffled(clip.tokens, `${test.id} ${state.listener} ${clip.key}`);
  const referenceOf = (clip) => clip.tokens.find((token) => conditions[token] === test.reference);
  const scoresOf = (clip) => (state.scores[clip.key] ??= {});
  const heardOf = (clip) => (state.heard[clip.key] ??= {});
  const clipNow = () => clipsInOrder()[state.at];

  // -- Screens ----------------------------------------------------------------------------------------------------

  function show(screen) {
    player.pause();
    for (const id of ["start", "trial", "done"]) byId(id).hidden = id !== screen;
    window.scrollTo(0, 0);
  }

  function showStart() {
    const count = test.clips.length;
    const most = Math.max(...test.clips.map((clip) => clip.tokens.length));
    byId("size").textContent =
      `${count} ${count === 1 ? "clip" : "clips"}, ${most} samples each: about ${Math.ceil((count * most) / 4)} minutes.`;
    byId("begin").textContent = state.listener === null ? "Begin" : "Continue";
    byId("listener").value = state.listener?.replace(/-[0-9a-z]{4}$/, "") ?? "";
    byId("listener").readOnly = state.listener !== null;
    show("start");
  }

  async function showTrial() {
    const clip = clipNow();
    const turn = (loading += 1);
    show("trial");
    byId("trial-title").textContent = `Clip ${state.at + 1} of ${test.clips.length}`;
    byId("trial-title").focus();
    byId("samples").replaceChildren();
    samples = [];
    try {
      const recordings = await loadRecordings(clip.key);
      if (turn !== loading) return; // the listener has gone on
      await player.load(recordings, test.sampleRate);
    } catch (error) {
      showProblem(error);
      return;
    }
    samples = tokensInOrder(clip).map((token, index) => makeSample(clip, token, index));
    byId("samples").replaceChildren(...samples.map((sample) => sample.column));
    choose(-1);
    update();
  }

  function makeSample(clip, token, index) {
    const number = index + 1;
    const column = document.createElement("div");
    column.className = "sample";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = number;
    button.setAttribute("aria-label", `Listen to sample ${number}`);
    if (number <= 9) button.setAttribute("aria-keyshortcuts", String(number));
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1 });
    slider.setAttribute("aria-label", `Score of sample ${number}`);
    slider.setAttribute("aria-orientation", "vertical");
    const output = document.createElement("output");
    column.append(button, slider, output);
    const sample = { token, slider, button, output, column };

    button.addEventListener("click", () => {
      if (shown === index && player.playing) pause();
      else listen(index);
    });
    const rate = () => {
      scoresOf(clip)[token] = Number(slider.value);
      keep();
      update();
    };
    slider.addEventListener("input", rate);
    slider.addEventListener("pointerup", rate); // also where the thumb was left: there is where it should be
    slider.value = scoresOf(clip)[token] ?? 50;
    return sample;
  }

  function words(score) {
    return ["bad", "poor", "fair", "good", "excellent"][Math.min(4, Math.floor(score / 20))];
  }

  function update() {
    const clip = clipNow();
    const scores = scoresOf(clip);
    for (const [index, { token, slider, button, output, column }] of samples.entries()) {
      const rated = token in scores;
      output.textContent = rated ? scores[token] : "–";
      slider.setAttribute("aria-valuetext", rated ? `${scores[token]}, ${words(scores[token])}` : "not rated yet");
      column.classList.toggle("rated", rated);
      column.classList.toggle("heard", token in heardOf(clip));
      column.classList.toggle("shown", index === shown);
      button.setAttribute("aria-pressed", String(index === shown));
    }
    byId("reference").setAttribute("aria-pressed", String(shown === -1));
    byId("play").textContent = player.playing ? "Pause" : "Play";
    const lacking = lacks(clip);
    byId("missing").textContent = lacking;
    byId("next").disabled = lacking !== "";
    byId("back").disabled = state.at === 0;
    byId("next").textContent = state.at + 1 < test.clips.length ? "Next clip" : "Finish";
    const all = test.clips.reduce((sum, one) => sum + one.tokens.length, 0);
    const rated = test.clips.reduce((sum, one) => sum + Object.keys(scoresOf(one)).length, 0);
    byId("progress").value = rated / all;
    byId("progress-label").textContent = `${rated} of ${all} rated`;
  }

  function lacks(clip) {
    const numbers = (test) => samples.flatMap(({ token }, index) => (test(token) ? [index + 1] : [])).join(", ");
    const unheard = numbers((token) => !(token in heardOf(clip)));
    const unrated = numbers((token) => !(token in scoresOf(clip)));
    if (samples.length === 0) return "Loading…";
    const parts = [];
    if (!heardOf(clip).reference) parts.push("listen to the reference");
    if (unheard) parts.push(`listen to ${unheard}`);
    if (unrated) parts.push(`rate ${unrated}`);
    return parts.length ? `Before you go on: ${parts.join("; ")}.` : "";
  }

  // -- Listening --------------------------------------------------------------------------------------------------

  function choose(index) {
    shown = index;
    player.select(index < 0 ? referenceOf(clipNow()) : samples[index].token);
  }

  function listen(index) {
    if (samples.length === 0) return;
    choose(index);
    player.play();
    byId("live").textContent = index < 0 ? "Reference" : `Sample ${index + 1}`;
    update();
  }

  function pause() {
    player.pause();
    update();
  }

  function tick(now) {
    const passed = lastTick === null ? 0 : Math.min(0.25, (now - lastTick) / 1000);
    lastTick = now;
    if (!byId("trial").hidden && player.playing && shown !== null) {
      noteHeard(passed);
      byId("clock").textContent = `${player.position.toFixed(1)} s`;
      if (document.activeElement !== byId("position") || !byId("position").matches(":active"))
        byId("position").value = Math.round((1000 * player.position) / player.duration);
    }
    requestAnimationFrame(tick);
  }

  let heardFor = new Map(); // "clip token" -> seconds

  function noteHeard(seconds) {
    const clip = clipNow();
    const what = shown < 0 ? "reference" : samples[shown].token;
    if (heardOf(clip)[what]) return;
    const key = `${clip.key} ${what}`;
    heardFor.set(key, (heardFor.get(key) ?? 0) + seconds);
    if (heardFor.get(key) >= Math.min(HEARD_S, player.duration / 2)) {
      heardOf(clip)[what] = true;
      keep();
      update();
    }
  }

  // -- Results ----------------------------------------------------------------------------------------------------

  function results() {
    const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
    const lines = [test.columns];
    for (const clip of test.clips)
      for (const [token, score] of Object.entries(scoresOf(clip))) {
        const row = { test: test.id, listener: state.listener, clip: clip.name, condition: conditions[token], score };
        lines.push(test.columns.map((column) => quoted(String(row[column]))));
      }
    return lines.map((line) => line.join(",") + "\n").join("");
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([results()], { type: "text/csv" }));
    link.download = `listening-${test.id}-${state.listener.replace(/[^\p{L}\p{N}-]+/gu, "_")}.csv`;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function showDone() {
    show("done");
    byId("csv").value = results();
    byId("done-title").focus();
  }

  // -- Wiring -----------------------------------------------------------------------------------------------------

  byId("join").addEventListener("submit", (event) => {
    event.preventDefault();
    const ending = Math.random().toString(36).slice(2, 6).padEnd(4, "0"); // two Annas stay two listeners
    state.listener ??= `${byId("listener").value.trim()}-${ending}`;
    keep();
    if (state.at >= test.clips.length) showDone();
    else showTrial();
  });
  byId("volume").addEventListener("click", async () => {
    if (player.playing) {
      player.pause();
      return;
    }
    try {
      const [clip] = test.clips;
      await player.load(await loadRecordings(clip.key), test.sampleRate);
      player.select(referenceOf(clip));
      player.play();
    } catch (error) {
      showProblem(error);
    }
  });
  byId("play").addEventListener("click", () => (player.playing ? pause() : listen(shown)));
  byId("reference").addEventListener("click", () => (shown === -1 && player.playing ? pause() : listen(-1)));
  byId("position").addEventListener("input", () => player.seek((byId("position").value / 1000) * player.duration));
  byId("save").addEventListener("click", save);
  byId("download").addEventListener("click", save);
  byId("next").addEventListener("click", () => {
    state.at += 1;
    keep();
    if (state.at >= test.clips.length) showDone();
    else showTrial();
  });
  byId("back").addEventListener("click", () => {
    state.at -= 1;
    keep();
    showTrial();
  });
  byId("review").addEventListener("click", () => {
    state.at = 0;
    keep();
    showTrial();
  });
  byId("again").addEventListener("click", () => {
    if (!window.confirm("Saved the results? They are removed from this browser.")) return;
    state = freshState();
    heardFor = new Map();
    keep();
    showStart();
  });
  document.addEventListener("keydown", (event) => {
    if (byId("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.tagName !== "BUTTON") byId("play").click();
    else if (event.key === "0") listen(-1);
    else if (/^[1-9]$/.test(event.key) && Number(event.key) <= samples.length) turnTo(Number(event.key) - 1);
    else if (event.key === "n") turnTo(Math.min(samples.length - 1, shown + 1));
    else if (event.key === "p") turnTo(Math.max(0, shown - 1));
    else return;
    event.preventDefault();
  });

  // By keyboard, a sample's slider comes with it: the arrow keys rate what is heard.
  function turnTo(index) {
    if (samples.length === 0) return;
    listen(index);
    samples[index].slider.focus();
  }

  requestAnimationFrame(tick);
  showStart();
})();
