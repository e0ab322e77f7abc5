(() => {
  const byId = id => document.getElementById(id);
  const data = JSON.parse(byId('data').textContent);
  const { width, height, cell, rows, cols, cities } = data;
  const noData = new Set(data.noData);
  const unlike = new Set(data.unlike); // places unlike any city that the network knows
  const canvas = byId('map');
  const context = canvas.getContext('2d');
  const shares = data.shares && Uint8Array.from(atob(data.shares), letter => letter.charCodeAt(0));
  const view = { x: width / 2, y: height / 2, zoom: 1 }; // raster pixel in the middle; 1 shows all
  let place = [Math.floor(rows / 2), Math.floor(cols / 2)]; // that is named: row, column

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const fitting = () => Math.min(canvas.clientWidth / width, canvas.clientHeight / height);
  const scale = () => fitting() * view.zoom; // screen pixels a raster pixel
  const shareOf = (number, city) => shares[number * cities.length + city]; // 255 is all
  const percent = share => share === 1 ? '<1 %' : `${Math.round(share / 2.55)} %`;

  // Layers, each drawn over those before it

  const layers = {};
  for (const row of document.querySelectorAll('[data-layer]')) {
    const id = row.dataset.layer;
    const [shown, opacity] = row.querySelectorAll('input');
    layers[id] = { shown, opacity, picture: byId(`${id}-picture`) };
    shown.addEventListener('input', () => redraw());
    opacity.addEventListener('input', () => show(id));
  }
  const show = id => {
    layers[id].shown.checked = true;
    redraw();
  };

  // Colours a layer by the value of each pixel: the grey of an image, unless valueAt gives it.
  const paint = (id, across, down, image, valueAt = (i, greys) => greys[4 * i]) => {
    const size = { width: across, height: down };
    const picture = Object.assign(document.createElement('canvas'), size);
    const pen = picture.getContext('2d');
    if (image) pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, across, down);
    for (let i = 0; i < across * down; i += 1) {
      pixels.data.set(data.ramps[id][valueAt(i, pixels.data)], 4 * i);
    }
    pen.putImageData(pixels, 0, 0);
    layers[id].picture = picture;
    redraw();
  };
  const paintShare = () => {
    const city = Number(byId('city').value);
    const { highest } = cities[city];
    byId('share-most').textContent = percent(highest);
    const valueAt = i => noData.has(i) ? 256 : Math.round(shareOf(i, city) / (highest || 1) * 255);
    paint('share', cols, rows, null, valueAt);
  };
  const paintSaliency = async () => {
    const number = byId('depth').value;
    const { address, target } = data.maps[number];
    const image = Object.assign(new Image(), { src: address });
    await image.decode();
    if (byId('depth').value !== number) return; // another one was chosen meanwhile
    byId('target').textContent = `What spoke for ${target}`;
    paint('saliency', image.naturalWidth, image.naturalHeight, image);
  };

  // Drawing

  const drawLayers = () => {
    for (const [id, { shown, opacity, picture }] of Object.entries(layers)) {
      if (!shown.checked || !picture) continue;
      const isGrid = id === 'cities' || id === 'share'; // a pixel a place
      const across = isGrid ? width / cell : picture.naturalWidth || picture.width;
      const down = isGrid ? height / cell : picture.naturalHeight || picture.height;
      context.globalAlpha = opacity.value / 100;
      context.imageSmoothingEnabled = !isGrid;
      context.drawImage(picture, 0, 0, across, down, 0, 0, width, height);
    }
    context.globalAlpha = 1;
  };
  // Slanting lines, dark beside light, over places that are like none of the cities.
  const drawUnlike = () => {
    if (!unlike.size || !layers.unlike.shown.checked) return;
    const pen = document.createElement('canvas').getContext('2d');
    Object.assign(pen.canvas, { width: 14, height: 14 });
    for (const [colour, shift] of [['#000', 1], ['#fff', -1]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = 2;
      pen.beginPath();
      for (const at of [0, 14, 28]) {
        pen.moveTo(at + shift - 14, 14);
        pen.lineTo(at + shift, 0);
      }
      pen.stroke();
    }
    const pattern = context.createPattern(pen.canvas, 'repeat');
    pattern.setTransform(new DOMMatrix().scale(1 / scale())); // as wide at every zoom
    context.globalAlpha = layers.unlike.opacity.value / 100;
    context.fillStyle = pattern;
    for (const number of unlike) {
      const [left, top] = [number % cols * cell, Math.floor(number / cols) * cell];
      context.fillRect(left, top, Math.min(cell, width - left), Math.min(cell, height - top));
    }
    context.globalAlpha = 1;
  };
  const drawPlace = () => {
    for (const [colour, thickness] of [['#000', 5], ['#fff', 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness / scale();
      context.strokeRect(place[1] * cell, place[0] * cell, cell, cell);
    }
  };
  const drawScaleBar = () => {
    const longest = 120 / scale() * data.metres;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map(step => step * power).find(metres => metres <= longest);
    byId('scale').style.width = `${length / data.metres * scale()}px`;
    byId('scale').textContent = length < 1000 ? `${+length.toFixed(9)} m` : `${length / 1000} km`;
  };
  const draw = () => {
    canvas.width = canvas.clientWidth * devicePixelRatio; // which also empties it
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const ratio = devicePixelRatio * scale();
    context.translate(canvas.width / 2, canvas.height / 2);
    context.scale(ratio, ratio);
    context.translate(-view.x, -view.y);
    drawLayers();
    drawUnlike();
    if (shares) drawPlace();
    if (data.metres) drawScaleBar();
  };
  let isWaiting = false;
  const redraw = () => {
    if (!isWaiting) requestAnimationFrame(() => { isWaiting = false; draw(); });
    isWaiting = true;
  };

  // Where the map is, and which place is named

  const centre = (x, y) => {
    view.x = view.zoom > 1 ? clamp(x, 0, width) : width / 2;
    view.y = view.zoom > 1 ? clamp(y, 0, height) : height / 2;
    redraw();
  };
  // What was at one point of the screen is at another afterwards; both count from the middle.
  const zoom = (factor, to = [0, 0], from = to) => {
    const old = scale();
    const closest = Math.max(4, 8 * byId('raster-picture').naturalWidth / width / fitting());
    view.zoom = clamp(view.zoom * factor, 1, closest);
    centre(view.x + from[0] / old - to[0] / scale(), view.y + from[1] / old - to[1] / scale());
  };
  const name = (row, column) => {
    if (!shares || row < 0 || row >= rows || column < 0 || column >= cols) return;
    place = [row, column];
    const number = row * cols + column;
    const where = `Row ${row + 1} of ${rows}, column ${column + 1} of ${cols}`;
    const remark = unlike.has(number) ? `${where}: unlike any city the network knows` : where;
    byId('where').textContent = noData.has(number) ? `${where}: no data` : remark;
    byId('similar').style.visibility = noData.has(number) ? 'hidden' : '';
    const similar = [...cities.keys()].sort((a, b) => shareOf(number, b) - shareOf(number, a));
    [...byId('similar').children].forEach((item, i) => {
      const share = shareOf(number, similar[i]);
      item.querySelector('bdi').textContent = cities[similar[i]].name;
      item.querySelector('b').textContent = percent(share);
      item.querySelector('i').style.background = cities[similar[i]].colour;
      item.querySelector('i').style.width = `${share / 2.55}%`;
    });
    redraw();
  };

  // Pointers and keys

  const fromMiddle = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
  };
  const nameAt = ([right, down]) => {
    const [x, y] = [view.x + right / scale(), view.y + down / scale()];
    name(Math.floor(y / cell), Math.floor(x / cell));
  };
  const pressed = new Map(); // where each finger or button that is down was last
  const on = (kind, work) => canvas.addEventListener(kind, work);
  on('pointerdown', event => {
    canvas.setPointerCapture(event.pointerId);
    pressed.set(event.pointerId, fromMiddle(event));
    nameAt(fromMiddle(event));
  });
  on('pointermove', event => {
    const before = pressed.get(event.pointerId);
    const now = fromMiddle(event);
    if (!before) return nameAt(now);
    pressed.set(event.pointerId, now);
    const other = [...pressed].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) return zoom(1, now, before);
    const distance = point => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
    const middle = point => [(point[0] + other[0]) / 2, (point[1] + other[1]) / 2];
    zoom(distance(now) / distance(before), middle(now), middle(before));
  });
  on('lostpointercapture', event => pressed.delete(event.pointerId));
  on('wheel', event => {
    event.preventDefault();
    const speed = event.ctrlKey || event.deltaMode ? 0.02 : 0.002; // trackpad, lines; or pixels
    zoom(Math.exp(-event.deltaY * speed), fromMiddle(event));
  });
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const ZOOMS = { '+': 1.5, '=': 1.5, '-': 1 / 1.5, 0: 0 };
  on('keydown', event => {
    const step = STEPS[event.key];
    if (!step && !(event.key in ZOOMS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (!step) return zoom(ZOOMS[event.key]);
    if (event.shiftKey || !shares) return zoom(1, [-80 * step[1], -80 * step[0]], [0, 0]);
    name(clamp(place[0] + step[0], 0, rows - 1), clamp(place[1] + step[1], 0, cols - 1));
    centre((place[1] + 0.5) * cell, (place[0] + 0.5) * cell);
    byId('said').textContent = `${byId('where').textContent} ${byId('similar').innerText}`;
  });
  const onEach = (selector, kind, work) => document.querySelectorAll(selector)
    .forEach(element => element.addEventListener(kind, () => work(element.dataset)));
  onEach('[data-zoom]', 'click', button => zoom(button.zoom));
  onEach('[data-city]', 'click', button => { byId('city').value = button.city; });
  onEach('[data-city]', 'click', () => { show('share'); paintShare(); });
  onEach('#city', 'input', () => { show('share'); paintShare(); });
  onEach('#depth', 'input', () => { show('saliency'); paintSaliency(); });

  new ResizeObserver(draw).observe(canvas);
  if (shares) paintShare();
  name(...place);
  Promise.all([byId('raster-picture').decode(), layers.saliency && paintSaliency()])
    .then(() => { redraw(); canvas.setAttribute('aria-busy', 'false'); });
})();
