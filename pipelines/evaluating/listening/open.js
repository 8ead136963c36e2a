// The open page: every picture of a clip is a button for its version; the clip loops while versions change.
"use strict";

(() => {
  const test = window.quantoneTest;
  const conditions = unseal(test.sealed);
  const player = new Player();
  let article = null; // the clip that is loaded

  const buttons = (of) => [...of.querySelectorAll("button.version")];

  function update() {
    for (const button of document.querySelectorAll("button.version")) {
      const on = player.playing && button.closest("article") === article && button.dataset.condition === heard();
      button.setAttribute("aria-pressed", String(on));
    }
  }

  const heard = () => conditions[player.current];

  async function press(button) {
    const wanted = button.closest("article");
    if (wanted !== article) {
      player.pause();
      article = wanted;
      await player.load(await loadRecordings(wanted.dataset.clip), test.sampleRate);
    } else if (player.playing && heard() === button.dataset.condition) {
      player.pause();
      update();
      return;
    }
    const token = [...player.buffers.keys()].find((one) => conditions[one] === button.dataset.condition);
    player.select(token);
    player.play();
    update();
  }

  function tick() {
    if (player.playing && article) {
      const share = `${(100 * player.position) / player.duration}%`;
      for (const button of buttons(article)) button.style.setProperty("--position", share);
    }
    requestAnimationFrame(tick);
  }

  for (const button of document.querySelectorAll("button.version"))
    button.addEventListener("click", () => press(button).catch(showProblem));
  requestAnimationFrame(tick);
})();
