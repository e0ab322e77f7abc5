(() => {
  // Tables are sorted by a click on a heading; what is empty comes last in either direction.
  const status = document.getElementById('said');

  const sortBy = (table, column) => {
    const headings = [...table.tHead.rows[0].cells];
    const heading = headings[column];
    const isNumeric = heading.classList.contains('number');
    const before = heading.getAttribute('aria-sort');
    // At first the largest number, and the first letter of the alphabet, comes first.
    const descending = before ? before === 'ascending' : isNumeric;

    const value = row => row.cells[column].dataset.v;
    const compare = isNumeric
      ? (a, b) => value(a) - value(b)
      : (a, b) => value(a).localeCompare(value(b));
    const rows = [...table.tBodies[0].rows];
    const filled = rows.filter(row => value(row) !== '');
    const empty = rows.filter(row => value(row) === '');
    filled.sort((a, b) => descending ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...filled, ...empty);

    headings.forEach(other => other.removeAttribute('aria-sort'));
    const direction = descending ? 'descending' : 'ascending';
    heading.setAttribute('aria-sort', direction);
    status.textContent = `Sorted by ${heading.textContent.trim()}, ${direction}`;
  };

  for (const table of document.querySelectorAll('table.sortable')) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector('button')?.addEventListener('click', () => sortBy(table, column));
    });
  }

  // Portraits are opened and closed together, or by a link from the table of cities.
  const portraits = [...document.querySelectorAll('details.portrait')];

  for (const button of document.querySelectorAll('[data-details]')) {
    const open = button.dataset.details === 'open';
    button.addEventListener('click', () => portraits.forEach(portrait => { portrait.open = open; }));
  }

  // On a phone only the first is open at the start: all of them would be a long way to scroll.
  if (matchMedia('(max-width: 32rem)').matches) {
    portraits.slice(1).forEach(portrait => { portrait.open = false; });
  }

  const reveal = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.matches('details')) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener('hashchange', reveal);
  reveal();

  // Paper cannot be opened.
  addEventListener('beforeprint', () => {
    document.querySelectorAll('details').forEach(details => { details.open = true; });
  });
})();
