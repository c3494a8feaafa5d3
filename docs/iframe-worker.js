// Search on pages that were opened from the disk, where a browser starts no Worker: the script runs in a frame instead.
if (location.protocol === "file:") {
  globalThis.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.document.write("<!doctype html><body>")
      inside.document.close()
      inside.postMessage = data => this.receive(data)
      inside.importScripts = (...urls) => urls.reduce((done, one) => done.then(() => this.load(one)), Promise.resolve())
      this.ready = this.load(String(url))
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.frame.contentDocument.createElement("script")
        script.src = url
        script.onload = () => done()
        script.onerror = failed
        this.frame.contentDocument.body.append(script)
      })
    }
    receive(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
  globalThis.Worker = globalThis.IFrameWorker
}
