// Several versions of one clip, played together and in a loop; one of them is heard. Changing which is a fade of a few
// milliseconds, so the ear compares the same syllable. Audio comes from script files, which a page may load from a
// folder, where fetch() may not.
"use strict";

const FADE_S = 0.006;

class Player {
  constructor() {
    this.context = null;
    this.buffers = new Map(); // name -> AudioBuffer
    this.running = null; // { sources, gains, startedAt }
    this.offset = 0; // seconds, where it stands while paused
    this.current = null; // name
    this.duration = 0;
  }

  get playing() {
    return this.running !== null;
  }

  get position() {
    if (!this.running || this.duration === 0) return this.offset;
    return Math.max(0, this.offset + this.context.currentTime - this.running.startedAt) % this.duration;
  }

  // recordings: name -> base64 of a FLAC file. Call it from a click or a key: browsers give sound to no one else.
  async load(recordings, sampleRate) {
    this.pause();
    if (this.context === null) this.context = new AudioContext({ sampleRate });
    const decoded = await Promise.all(
      Object.entries(recordings).map(async ([name, text]) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        return [name, await this.context.decodeAudioData(bytes.buffer)];
      }),
    );
    this.buffers = new Map(decoded);
    this.duration = Math.max(...decoded.map(([, buffer]) => buffer.duration));
    this.offset = 0;
    this.current = null;
  }

  select(name) {
    if (this.running) {
      const now = this.context.currentTime;
      for (const [other, gain] of this.running.gains) {
        gain.gain.cancelScheduledValues(now);
        gain.gain.setValueAtTime(gain.gain.value, now);
        gain.gain.linearRampToValueAtTime(other === name ? 1 : 0, now + FADE_S);
      }
    }
    this.current = name;
  }

  play() {
    if (this.running || this.current === null) return;
    this.context.resume();
    const startedAt = this.context.currentTime + 0.02; // all of them can be ready by then
    const sources = [];
    const gains = new Map();
    for (const [name, buffer] of this.buffers) {
      const source = new AudioBufferSourceNode(this.context, { buffer, loop: true });
      const gain = new GainNode(this.context, { gain: name === this.current ? 1 : 0 });
      source.connect(gain).connect(this.context.destination);
      source.start(startedAt, this.offset % buffer.duration);
      sources.push(source);
      gains.set(name, gain);
    }
    this.running = { sources, gains, startedAt };
  }

  pause() {
    if (!this.running) return;
    this.offset = this.position;
    for (const source of this.running.sources) source.stop();
    this.running = null;
  }

  seek(seconds) {
    const wasPlaying = this.playing;
    this.pause();
    this.offset = Math.min(Math.max(0, seconds), Math.max(0, this.duration - 0.01));
    if (wasPlaying) this.play();
  }
}

const waiting = new Map(); // clip -> what to do with its recordings

// Called by audio/<clip>.js.
window.quantoneAudio = (clip, recordings) => waiting.get(clip)?.(recordings);

function loadRecordings(clip) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    waiting.set(clip, resolve);
    script.src = `audio/${clip}.js`;
    script.onerror = () => reject(new Error(`${script.src} is missing: keep the folder together`));
    script.onload = () => script.remove();
    document.head.append(script);
  });
}

// Names of the conditions by token. They are no secret, only out of sight: a blind page must not show them by accident.
function unseal(sealed) {
  const bytes = Uint8Array.from(atob(sealed), (letter) => letter.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
}

function showProblem(error) {
  const line = document.getElementById("problem");
  line.textContent = `This cannot be played here: ${error.message ?? error}`;
  line.hidden = false;
}
