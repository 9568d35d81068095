// Returns what does not fit in a page, a line for each: the page is wider than its screen, an
// element passes the screen's edge where nothing scrolls, a text leaves its picture, a picture is
// empty, text overlaps text in a picture, a command is cut by its box.
(() => {
  const faults = [], SLACK = 1.5;
  const width = document.documentElement.clientWidth;
  const name = (element) => {
    const text = (element.textContent || "").trim().replace(/\s+/g, " ").slice(0, 60);
    return `<${element.tagName.toLowerCase()}> ${JSON.stringify(text)}`;
  };
  if (document.documentElement.scrollWidth > width + SLACK)
    faults.push(`the page is ${document.documentElement.scrollWidth} wide on a screen of ${width}`);
  const visible = (element) => element.checkVisibility({visibilityProperty: true, opacityProperty: true});
  const contained = (element) => {
    for (let above = element.parentElement; above; above = above.parentElement) {
      const style = getComputedStyle(above);
      if (style.overflowX !== "visible" || style.position === "fixed") return true;
    }
    return false;
  };
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest("svg") || !visible(element)) continue;
    const box = element.getBoundingClientRect();
    if (box.width && box.height && box.right > width + SLACK && box.left < width && !contained(element))
      faults.push(`${name(element)} ends at ${box.right.toFixed(0)} of ${width}`);
  }
  for (const command of document.querySelectorAll(".language-sh pre, .language-yaml pre"))
    for (const element of [command, command.querySelector("code")])
      if (visible(element) && element.scrollWidth > element.clientWidth + SLACK)
        faults.push(`${name(element)} is cut`);
  for (const picture of document.querySelectorAll("svg[viewBox], svg[role=img]")) {
    if (!visible(picture)) continue;
    const frame = picture.getBoundingClientRect();
    if (!frame.width) continue;
    if (picture.closest("figure") && !picture.querySelector("polyline, path, rect, circle"))
      faults.push(`an empty picture: ${picture.getAttribute("aria-label")}`);
    const texts = [...picture.querySelectorAll("text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((box, index) => {
      if (box.left < frame.left - SLACK || box.right > frame.right + SLACK ||
          box.top < frame.top - SLACK || box.bottom > frame.bottom + SLACK)
        faults.push(`${name(texts[index])} leaves its picture ${picture.getAttribute("aria-label")}`);
      boxes.slice(0, index).forEach((other, before) => {
        const over = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
        if (over > 2 && down > box.height / 3)
          faults.push(`${name(texts[index])} lies over ${name(texts[before])}`);
      });
    });
  }
  return faults;
})()
