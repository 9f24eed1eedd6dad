// Gradio passes on the files' own names alone, which do not say which folder they lay in.
document.addEventListener('change', event => {
    if (event.target.webkitdirectory) window.ddadFolders = [...event.target.files].map(file => file.webkitRelativePath);
}, true);

// The verdict is read out and has a colour; an example is called by what it shows.
const look = () => {
    const verdict = document.getElementById('verdict');
    if (verdict) {
        const headline = verdict.querySelector('h2')?.textContent.trim() ?? '';
        const state = headline.includes('Not such a part') ? 'other'
            : headline.startsWith('✓') ? 'good' : headline.startsWith('⚠') ? 'defect' : 'none';
        if (verdict.dataset.state !== state) verdict.dataset.state = state;
        if (verdict.getAttribute('role') !== 'status') {
            verdict.setAttribute('role', 'status');
            verdict.setAttribute('aria-live', 'polite');
        }
    }
    for (const item of document.querySelectorAll('#examples .thumbnail-item')) {
        const words = item.querySelector('.caption-label')?.textContent.trim();
        if (words && item.getAttribute('aria-label') !== words) item.setAttribute('aria-label', words);
    }
};
let waiting = false;
new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; look(); });
}).observe(document.body, {childList: true, subtree: true, characterData: true});
look();

document.addEventListener('keydown', event => {
    // Arrow keys go from tab to tab, as in other programs.
    const tab = event.target.closest?.('[role=tab]');
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (tab && step) {
        const tabs = [...tab.closest('[role=tablist]').querySelectorAll('[role=tab]')].filter(one => one.offsetParent);
        const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
        event.preventDefault();
        next.focus();
        next.click();
    }
    // Space says "this was wrong" in the line view, wherever no field or button would take it.
    const wrong = document.querySelector('#line-wrong');
    const taken = event.target.closest?.('input, textarea, select, button, a, [contenteditable], [role=tab], video');
    if (event.code === 'Space' && wrong?.offsetParent && !taken) {
        event.preventDefault();
        wrong.click();
    }
});
