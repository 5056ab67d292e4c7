"""How the page looks: calm, in the system's own letters, in light and in dark, on a wide window and a narrow one."""

import gradio as gr

LETTERS = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
MONOSPACED = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")
HEAD = '<meta name="color-scheme" content="light dark">'


def make_theme() -> gr.themes.Base:
    """Without letters from elsewhere, which gradio's own themes fetch; colours of both modes are gradio's variables."""
    theme = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="stone",
        font=LETTERS,
        font_mono=MONOSPACED,
        radius_size="md",
        text_size="md",
    )
    return theme.set(
        body_background_fill="#fbfaf9",
        body_background_fill_dark="#171513",
        body_text_color_subdued="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_background_fill_dark="*background_fill_primary",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*body_text_color_subdued",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_text_weight="600",
        block_info_text_color="*body_text_color_subdued",
        block_info_text_size="12px",
        input_background_fill="*background_fill_primary",
        input_border_width="1px",
        form_gap_width="0px",
        button_large_padding="9px 22px",
        button_large_text_weight="600",
        layout_gap="12px",
    )


CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; padding: 0 !important; }
.gradio-container .main { padding: 24px 24px 48px !important; }
.form { background: transparent !important; border: 0 !important; box-shadow: none !important; gap: 2px !important; }
.title h1 { font-size: 22px; font-weight: 650; letter-spacing: -.01em; margin: 0; }
.fields div#about { padding: 6px 14px 4px !important; }
.fields #about * { padding: 0; }
.about { color: var(--body-text-color-subdued); font-size: 13px; line-height: 1.5; }
.columns { width: 100%; gap: 32px !important; align-items: flex-start; }

/* Fields: what it is called and means at the left, its value at the right. */
.fields { background: var(--background-fill-primary); border: 1px solid var(--border-color-primary);
  border-radius: 12px; padding: 8px 4px !important; gap: 2px !important; }
.fields div.block { padding: 7px 14px !important; }
.settings { gap: 0 !important; flex-direction: column; }
.settings .container, #seed .container { display: grid; grid-template-columns: minmax(0, 1fr) 112px; column-gap: 16px;
  align-items: center; }
.settings .container > *, #seed .container > * { grid-column: 1; }
.settings .container > :is(input, .input-container, .wrap), #seed .container > input
  { grid-column: 2; grid-row: 1 / span 2; margin: 0; }
.fields span[data-testid="block-info"] { margin-bottom: 1px; }
.fields .info-text { line-height: 1.35; margin: 0; }
#classes .info-text { margin-bottom: 6px; }
.seed { gap: 0 !important; }
.seed #seed { padding-right: 6px !important; }
.seed #new-seed { margin-right: 14px; align-self: center; }
.seed #seed .container { grid-template-columns: minmax(0, 1fr) 96px; column-gap: 8px; }
.fields .secondary-wrap input { padding-right: 28px !important; text-overflow: ellipsis; }
#classes ul.options { max-height: 300px; }

/* Buttons and what is said beside them. */
.buttons { align-items: center; gap: 14px !important; margin-top: 4px; flex-wrap: wrap; }
.buttons button { flex: 0 0 auto !important; min-width: 120px !important; }
.buttons > .block { flex: 1 1 260px; }
.say { white-space: pre-line; font-size: 14px; line-height: 1.45; color: var(--body-text-color-subdued);
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.say.error { color: var(--error-text-color); background: var(--error-background-fill); padding: 8px 12px;
  border-radius: 8px; border: 1px solid var(--error-border-color); }
.say .bar, .say .bar i { display: block; height: 4px; border-radius: 2px; }
.say .bar { margin-top: 5px; background: var(--border-color-primary); }
.say .bar i { background: var(--color-accent); transition: width .1s; }

/* Images. */
.html-container { padding: 0 !important; }
.crisp { image-rendering: pixelated; }
.tiles { display: grid; grid-template-columns: repeat(var(--tiles), minmax(0, 172px)); gap: 10px; margin: 6px 0 2px; }
.tile { display: block; padding: 4px 4px 2px; border: 0; border-radius: 10px; background: transparent; font: inherit;
  text-align: center; color: var(--body-text-color-subdued); font-size: 12.5px; line-height: 1.5; }
button.tile { cursor: pointer; }
.tile img { display: block; width: 100%; aspect-ratio: 1; border-radius: 7px; margin: 0; }
.tile span { display: block; line-height: 1.25; padding: 3px 0; overflow-wrap: anywhere; }
button.tile:hover { background: var(--background-fill-secondary); }
button.tile:focus-visible { outline: 2px solid var(--color-accent); }
button.tile[aria-pressed="true"] { box-shadow: inset 0 0 0 2px var(--color-accent); color: var(--body-text-color); }

/* How an image came about: a column for each scale. */
.scales { --name: 104px; display: grid; gap: 8px; margin: 8px 0; max-width: calc(var(--name) + var(--scales) * 128px);
  font-size: 12.5px; color: var(--body-text-color-subdued); }
.scales.single { max-width: calc(var(--name) + 240px); }
.scales .row { display: grid; grid-template-columns: var(--name) repeat(var(--scales), minmax(0, 1fr)); gap: 8px;
  align-items: center; }
.scales .heads { text-align: center; font-variant-numeric: tabular-nums; }
.scales .name { color: var(--body-text-color); font-weight: 600; font-size: 13px; padding-right: 8px; }
.scales .cell > * { display: block; width: 100%; aspect-ratio: 1; border-radius: 7px; margin: 0; }
.scales .blank { background: var(--border-color-primary); opacity: .45; }
.scales .cell > img.crisp { background: var(--background-fill-secondary); }
.scales text { text-anchor: middle; dominant-baseline: central; font-family: var(--font); font-weight: 500; }
.legend { display: flex; align-items: center; gap: 5px; font-weight: 400; font-size: 11px; margin-top: 3px;
  color: var(--body-text-color-subdued); white-space: nowrap; }
.legend b { font-weight: 400; }
.legend i { flex: 1; min-width: 16px; max-width: 48px; height: 6px; border-radius: 3px;
  background: linear-gradient(90deg, var(--colours)); }

/* What is kept. */
.keep { align-items: center; }
.keep > button { flex: 0 0 auto !important; }
.keep button, .sources button { font-weight: 400; font-size: 13px; padding: 6px 12px; }
.sources { align-items: center; }
.sources > button, .sources > .upload-button { flex: 0 0 auto !important; }
.hint { font-size: 14px; color: var(--body-text-color-subdued); }
#draw-command, #edit-command { border: 1px solid var(--border-color-primary) !important; border-radius: 10px;
  background: var(--background-fill-primary); }
#draw-command .cm-gutters, #edit-command .cm-gutters { display: none !important; }
#canvas .pixi-target { display: flex; justify-content: center; }
#canvas { border: 1px solid var(--border-color-primary) !important; border-radius: 10px; }
.downloads { display: flex; flex-wrap: wrap; gap: 8px; }
.downloads a { padding: 5px 12px; border: 1px solid var(--border-color-primary); border-radius: 8px; font-size: 13px;
  color: var(--body-text-color); text-decoration: none; background: var(--background-fill-primary); }
.downloads a:hover { border-color: var(--color-accent); }

/* A narrow window: one below the other, the buttons always at hand. */
@media (max-width: 700px) {
  .gradio-container .main { padding: 14px 12px 120px !important; }
  .columns { gap: 18px !important; }
  .buttons { position: fixed; z-index: 1000; left: 0; right: 0; bottom: 0; margin: 0; padding: 10px 12px;
    flex-wrap: nowrap; background: var(--body-background-fill); border-top: 1px solid var(--border-color-primary); }
  .buttons > .block { flex: 1 1 0; }
  .title h1 { font-size: 19px; }
  #canvas { height: 372px !important; }
  .say { font-size: 12.5px; max-height: 4.4em; overflow: auto; }
  .tiles { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 4px; }
  :is(#draw-pictures, #edit-pictures):not(:has(.tile)) { min-height: 80vh; }  /* room to scroll to */
  .tiles.few { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .scales { --name: 76px; gap: 6px; }
  .scales .row { gap: 6px; }
  .legend { flex-wrap: wrap; }
}
"""
