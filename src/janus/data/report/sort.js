document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead th").forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.append.apply(button, head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(function (other) { other.setAttribute("aria-sort", "none"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var body = table.tBodies[0];
      var words = function (row) { return row.cells[column].textContent; };
      var number = function (row) { return parseFloat(words(row).replace(/,/g, "")); };
      Array.from(body.rows)
        .sort(function (a, b) { return (up ? 1 : -1) * (number(a) - number(b) || words(a).localeCompare(words(b), "en", { numeric: true })); })
        .forEach(function (row) { body.append(row); });
    });
  });
});
