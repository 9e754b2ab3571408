(function () {
  var blocks = document.querySelectorAll('details.code');
  if (!blocks.length) return;
  var button = document.createElement('button'), open = false;
  button.type = 'button';
  button.textContent = 'Show all code';
  button.onclick = function () {
    open = !open;
    blocks.forEach(function (block) { block.open = open; });
    button.textContent = open ? 'Hide all code' : 'Show all code';
  };
  document.getElementById('code-switch').appendChild(button);
})();
